"""The record of a run: its folder, status and progress, written and read back. Knows no fleet."""
