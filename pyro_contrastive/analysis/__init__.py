"""Analyses of a fitted model, on which the methods of ``ContrastiveVI`` are built."""
