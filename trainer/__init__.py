"""Tensors: batches, losses, the learner, checkpoints, weights out."""
