"""Tools for judges: `dorado judge eval | tune | play`."""
