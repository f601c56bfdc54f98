"""Matplotlib figures: each takes arrays or tables, draws on one Axes and returns it."""

from pyro_contrastive.plotting.check_curves import plot_coverage, plot_pit, plot_trend
from pyro_contrastive.plotting.checks import (
    plot_correlations,
    plot_effects,
    plot_groups,
    plot_misfit,
    plot_statistic,
)
from pyro_contrastive.plotting.latents import plot_embedding, plot_history, plot_scores

__all__ = [
    "plot_correlations",
    "plot_coverage",
    "plot_effects",
    "plot_embedding",
    "plot_groups",
    "plot_history",
    "plot_misfit",
    "plot_pit",
    "plot_scores",
    "plot_statistic",
    "plot_trend",
]
