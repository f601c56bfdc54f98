"""Matplotlib figures: each takes arrays or tables, draws on one Axes and returns it."""

from pyro_contrastive.plotting.latents import plot_embedding, plot_history, plot_scores

__all__ = ["plot_embedding", "plot_history", "plot_scores"]
