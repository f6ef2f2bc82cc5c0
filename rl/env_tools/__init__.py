"""The author's kit: `dorado env new | list | check | soak | play | eval | replay`."""
