"""A planned run as Kubernetes objects. No cluster is asked, and no clock."""
