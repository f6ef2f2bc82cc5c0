"""From finished groups to training samples: queue, ledger and metrics. Knows no Ray."""
