"""How well classes of cells are mixed: the classes among the nearest neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy
from sklearn.neighbors import NearestNeighbors

__all__ = ["mixing"]

MOST_CELLS = 20_000
"""Cells whose neighbours are looked for at most."""


def mixing(latent: NDArray[np.floating[Any]], codes: NDArray[np.int64], n_neighbors: int) -> float:
    """Mean entropy of the classes among each cell's neighbours, over their entropy overall."""
    nearest = codes[_nearest_others(latent, n_neighbors)]  # [cells, neighbours]
    classes = np.arange(codes.max() + 1)
    shares = np.stack([(nearest == c).mean(axis=1) for c in classes], axis=1)  # [cells, classes]
    overall = np.bincount(codes) / len(codes)  # [classes]
    return float(_entropy(shares).mean() / _entropy(overall))


def _nearest_others(latent: NDArray[np.floating[Any]], n_neighbors: int) -> NDArray[np.int64]:
    """Nearest neighbours of all cells, or of some if there are many, ``[cells, neighbours]``."""
    neighbors = NearestNeighbors(n_neighbors=n_neighbors).fit(latent)
    if len(latent) <= MOST_CELLS:
        # Called without points, kneighbors leaves each cell itself out, even among duplicates.
        return np.asarray(neighbors.kneighbors(return_distance=False))
    asked = np.random.default_rng(0).choice(len(latent), MOST_CELLS, replace=False)
    found = neighbors.kneighbors(latent[asked], n_neighbors + 1, return_distance=False)
    is_itself = found == asked[:, None]
    is_itself[~is_itself.any(axis=1), -1] = True  # its duplicates came first, and it did not
    return np.asarray(found[~is_itself].reshape(-1, n_neighbors))


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy in nats over the last axis, 0 log 0 being 0."""
    # Subtracted from zero rather than negated, so that a pure neighbourhood gives 0.0, not -0.0.
    return np.asarray(0.0 - xlogy(shares, shares).sum(axis=-1))
