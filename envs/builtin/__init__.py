"""The environments that come with Dorado: small, seeded, stateful, judged on what is left at the end."""
