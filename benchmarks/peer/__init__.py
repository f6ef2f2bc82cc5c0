"""The sides of `benchmarks/against_trl.py`: the same work in Dorado and in TRL."""
