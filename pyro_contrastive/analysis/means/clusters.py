"""Clusters of cells that are alike in the background latent, within which means are compared."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

__all__ = ["clusters"]

CELLS_PER_CLUSTER = 40
"""Cells there must be for each cluster that is made."""
MOST_FITTED = 20_000
"""Number of cells, drawn at random, by which the clusters of more cells are found."""
_N_STARTS, _MOST_STEPS = 5, 300
_FLOOR = 1e-6
"""Least variance in any direction, relative to the average one."""


def clusters(z: NDArray[np.float32], n_clusters: int, seed: int = 0) -> NDArray[np.int64]:
    """Cluster cells by their background latent, ``[cells]``.

    The clusters are those of a mixture of Gaussians that share their covariance. Cells of one type
    also vary continuously, for example along the cell cycle, in ways that the types have in common:
    the shared covariance takes these up. k-means cuts the types along such directions instead, and
    joins two types elsewhere, so that a difference in their frequencies is taken for a response.

    Fewer clusters are made of few cells, so that each has enough of both groups.

    Parameters
    ----------
    z
        ``[cells, latents]``.
    n_clusters
        Number of clusters.
    seed
        Seed of the starting values.
    """
    n = max(1, min(n_clusters, len(z) // CELLS_PER_CLUSTER))
    values = np.asarray(z, dtype=np.float64)
    variance = values.var(0).mean() if len(values) else 0.0
    if n == 1 or variance == 0:
        return np.zeros(len(z), dtype=np.int64)
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415  # slow to import
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415

    mixture = GaussianMixture(
        n,
        covariance_type="tied",
        reg_covar=_FLOOR * variance,
        n_init=_N_STARTS,
        max_iter=_MOST_STEPS,
        random_state=seed,
    )
    fitted = values
    if len(values) > MOST_FITTED:
        rng = np.random.default_rng(seed)
        fitted = values[rng.choice(len(values), MOST_FITTED, replace=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # clusters that are nearly right do
        mixture.fit(fitted)
    return np.asarray(mixture.predict(values), dtype=np.int64)
