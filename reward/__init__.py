"""Judgement of finished trajectories."""
