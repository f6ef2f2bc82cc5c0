"""The loops of one run: rollouts, learner and weight sync, and what they book."""
