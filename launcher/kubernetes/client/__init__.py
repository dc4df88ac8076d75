"""A run on a cluster, through the Kubernetes API: sent, watched, ended."""
