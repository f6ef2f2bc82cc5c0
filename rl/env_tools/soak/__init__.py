"""`dorado env soak`: many episodes at once on real hosts, some disturbed: what leaks, what is lost."""
