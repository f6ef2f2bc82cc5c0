"""The model families that the engines know, one record each."""
