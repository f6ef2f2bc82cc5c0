"""Runs as jobs of Ray's job server: submit, list, follow, stop."""
