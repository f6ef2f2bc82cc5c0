"""Tools for authors: `dorado env new | list | check | soak | play | eval | replay`."""
