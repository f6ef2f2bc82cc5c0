"""Frozen models beside the policy: the pool in front of each, the wire to it, the server that serves it."""
