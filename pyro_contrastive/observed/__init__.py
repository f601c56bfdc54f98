"""Counts of some cells, as model and guide see them."""
