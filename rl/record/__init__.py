"""What a run writes down and shows: run folder, status, progress. Knows no fleet."""
