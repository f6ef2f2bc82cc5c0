"""Recipes: several runs after one another, from a cold start over experts to one policy."""
