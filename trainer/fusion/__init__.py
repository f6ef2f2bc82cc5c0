"""Fusion of models that began as one: by averaging, or by their task vectors, one tensor at a time."""
