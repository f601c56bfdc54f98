"""Compare the means of two groups of cells, gene by gene, within strata."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.analysis.means.group_sums import GroupSums, group_sums, why_not_tested
from pyro_contrastive.analysis.means.log_ratio import fit_log_ratio, score_statistic
from pyro_contrastive.analysis.means.settings import MeansSettings
from pyro_contrastive.observed.matrix import Matrix

__all__ = ["clusters", "compare_means"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
LOG_2 = math.log(2)
CELLS_PER_CLUSTER = 40
"""Cells there must be for each cluster of the background latent that is made."""


def clusters(z: NDArray[np.float32], n_clusters: int, seed: int = 0) -> Codes:
    """Cluster cells by their background latent, ``[cells]``: k-means.

    Fewer clusters are made of few cells, so that each has enough of both groups.

    Parameters
    ----------
    z
        ``[cells, latents]``.
    n_clusters
        Number of clusters.
    seed
        Seed of k-means.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415  # slow to import

    n = max(1, min(n_clusters, len(z) // CELLS_PER_CLUSTER))
    found = KMeans(n, n_init=5, random_state=seed).fit_predict(z)
    return np.asarray(found, dtype=np.int64)


def compare_means(
    x: Matrix,
    sizes: Array,
    strata: Codes,
    side: NDArray[np.bool_],
    names: pd.Index,
    settings: MeansSettings,
) -> pd.DataFrame:
    """Test every gene; see :meth:`~pyro_contrastive.ContrastiveVI.differential_expression`.

    Parameters
    ----------
    x
        Counts, ``[cells, genes]``.
    sizes
        Library size or size factor of each cell, positive, ``[cells]``.
    strata
        Stratum of each cell, from 0, ``[cells]``.
    side
        Which cells are in the group whose change is asked for; the others are compared with.
    names
        Names of the strata.
    settings
        Settings of the test.

    Returns
    -------
    A row per gene (and stratum), in the order of the genes, without their names.

    Raises
    ------
    ValueError
        If no stratum has enough cells of both groups.
    """
    sums = group_sums(x, sizes / sizes.mean(), strata, side)
    shared = sums.shared(settings.fewest_cells)
    if not shared.any():
        msg = (
            f"No stratum has at least {settings.fewest_cells} cells of both groups, so that "
            "nothing can be compared within strata: a batch or stratum that holds one group alone "
            "cannot be told apart from it. Use fewer strata=, or another column."
        )
        raise ValueError(msg)
    if not settings.by_stratum:
        return _with_fdr(_tested(sums.of(shared), settings), settings)
    tables = []
    for k in np.flatnonzero(shared):
        table = _tested(sums.of(np.arange(len(shared)) == k), settings)
        table.insert(0, "stratum", names[k])
        tables.append(table)
    return _with_fdr(pd.concat(tables), settings)


def _tested(sums: GroupSums, settings: MeansSettings) -> pd.DataFrame:
    """Test every gene over some strata."""
    from scipy.stats import norm  # noqa: PLC0415  # slow to import

    fit = fit_log_ratio(sums)
    n_counts = sums.counts.sum((0, 1))
    enough = n_counts >= settings.fewest_counts
    width = norm.ppf((1 + settings.interval) / 2) * fit.standard_error
    value = np.where(enough, fit.value, np.nan)
    means = sums.counts.sum(0) / sums.sizes.sum(0)[:, None]
    return pd.DataFrame(
        {
            "lfc": value / LOG_2,
            "lfc_se": np.where(enough, fit.standard_error, np.nan) / LOG_2,
            "lower": (value - width) / LOG_2,
            "upper": (value + width) / LOG_2,
            "p_value": np.where(enough, _p_values(sums, fit.value, settings), np.nan),
            "mean1": means[1],
            "mean2": means[0],
            "n_cells1": sums.n_cells[:, 1].sum(),
            "n_cells2": sums.n_cells[:, 0].sum(),
            "n_strata": len(sums.n_cells),
            "not_tested": why_not_tested(n_counts, settings.fewest_counts),
        }
    )


def _p_values(sums: GroupSums, estimate: Array, settings: MeansSettings) -> Array:
    """Two-sided p-values of a log ratio within the threshold, from the score at its edge."""
    from scipy.stats import norm  # noqa: PLC0415  # slow to import

    edge = settings.lfc_threshold * LOG_2
    if edge == 0:
        return np.asarray(2 * norm.sf(np.abs(score_statistic(sums))))
    above = norm.sf(score_statistic(sums, edge))
    below = norm.sf(-score_statistic(sums, -edge))
    beyond = np.where(estimate > 0, above, below)
    return np.where(np.abs(estimate) > edge, np.minimum(2 * beyond, 1.0), 1.0)


def _with_fdr(table: pd.DataFrame, settings: MeansSettings) -> pd.DataFrame:
    """Add p-values adjusted by Benjamini and Hochberg over all tests made."""
    from scipy.stats import false_discovery_control  # noqa: PLC0415  # slow to import

    p = table["p_value"].to_numpy()
    there = np.isfinite(p)
    adjusted = np.full(len(p), np.nan)
    if there.any():
        adjusted[there] = false_discovery_control(p[there])
    at = list(table.columns).index("p_value") + 1
    table.insert(at, "p_adj", adjusted)
    table.insert(at + 1, f"is_de_fdr_{settings.fdr_target}", adjusted <= settings.fdr_target)
    return table
