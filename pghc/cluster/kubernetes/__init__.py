"""The kind backend: the same deployment as Kubernetes objects."""
