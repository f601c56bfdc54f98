"""Matplotlib figures: each takes arrays or tables, draws on one Axes and returns it.

Figures with several panels return an array of Axes.

What a treatment did: `plot_volcano` (a test of every gene), `plot_group_effects` (a heat map of
genes by cell type and donor).
"""

from pyro_contrastive.plotting.diagnostics import (
    plot_comparison,
    plot_pareto_k,
    plot_posterior_accuracy,
    plot_ranks,
)
from pyro_contrastive.plotting.group_effects import plot_group_effects
from pyro_contrastive.plotting.latent_quality import plot_latent_usage, plot_leakage
from pyro_contrastive.plotting.latents import plot_embedding, plot_history
from pyro_contrastive.plotting.ppc import plot_correlations, plot_effects, plot_statistic
from pyro_contrastive.plotting.ppc_curves import plot_coverage, plot_pit, plot_trend
from pyro_contrastive.plotting.ppc_overall import plot_groups, plot_misfit
from pyro_contrastive.plotting.scores import plot_scores
from pyro_contrastive.plotting.volcano import plot_volcano

__all__ = [
    "plot_comparison",
    "plot_correlations",
    "plot_coverage",
    "plot_effects",
    "plot_embedding",
    "plot_group_effects",
    "plot_groups",
    "plot_history",
    "plot_latent_usage",
    "plot_leakage",
    "plot_misfit",
    "plot_pareto_k",
    "plot_pit",
    "plot_posterior_accuracy",
    "plot_ranks",
    "plot_scores",
    "plot_statistic",
    "plot_trend",
    "plot_volcano",
]
