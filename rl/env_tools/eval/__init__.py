"""`dorado env eval`: a model plays held-out tasks."""
