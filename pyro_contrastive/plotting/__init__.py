"""Matplotlib figures: each takes arrays or tables, draws on one Axes and returns it.

Those that need several panels return an array of Axes.
"""

from pyro_contrastive.plotting.diagnostics import (
    plot_comparison,
    plot_pareto_k,
    plot_posterior_accuracy,
    plot_ranks,
)
from pyro_contrastive.plotting.latent_checks import plot_latent_usage, plot_leakage
from pyro_contrastive.plotting.latents import plot_embedding, plot_history, plot_scores

__all__ = [
    "plot_comparison",
    "plot_embedding",
    "plot_history",
    "plot_latent_usage",
    "plot_leakage",
    "plot_pareto_k",
    "plot_posterior_accuracy",
    "plot_ranks",
    "plot_scores",
]
