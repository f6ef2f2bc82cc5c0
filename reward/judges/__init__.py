"""The judges that ship with Dorado: prompts are files with versions, verdicts are JSON by schema."""
