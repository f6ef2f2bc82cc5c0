"""`dorado plan --here`: measures this machine, and predicts what a run on it would do per second."""
