"""Engines, versions and weights of one run, and the nodes that they are on."""
