"""What the image is made of: its pinned files, their licences, its bill of materials.

Standard library alone: it runs in the image's build, before anything is installed.
"""
