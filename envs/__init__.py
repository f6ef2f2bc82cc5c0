"""The worlds the policy acts in: messages only, no tokens."""
