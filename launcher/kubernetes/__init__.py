"""Runs on Kubernetes: manifests from the plan; commands that send a run off, watch and end it."""
