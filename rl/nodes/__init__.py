"""Nodes and processes: where things run, their folders, logs and deadlines."""
