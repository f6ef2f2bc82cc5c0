"""The Mixture-of-Experts parts that the learner has of its own."""
