"""The model families that the learner knows, one record each."""
