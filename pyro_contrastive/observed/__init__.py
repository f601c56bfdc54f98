"""Observed counts, in the forms that model and guide take."""
