"""A Kubernetes API server for tests: a recording of a real one, or a real one with acted nodes.

`stage` chooses; `recorder` stores what commands and a real server say to each other, and `replay`
says it again. tests/recordings/kubernetes/README.md tells what was recorded, and how to do it anew.
"""
