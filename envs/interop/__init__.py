"""Worlds of other ecosystems: spoken to by wire, or run in an interpreter of their own."""
