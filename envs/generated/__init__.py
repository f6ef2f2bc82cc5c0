"""Generated worlds: domains as data, tasks made and verified from chains of their tools."""
