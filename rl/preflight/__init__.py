"""Preflight: a configuration held against this machine before anything starts."""
