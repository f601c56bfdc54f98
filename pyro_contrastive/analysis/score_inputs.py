"""Inputs of the scores of latents, checked: matrices, and labels as codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive.data.levels import position_of

Latent = NDArray[np.floating[Any]]
Codes = NDArray[np.intp]


def check_neighbors(n_neighbors: int, n_cells: int) -> None:
    """Refuse more neighbours than there are other cells."""
    if not 0 < n_neighbors < n_cells:
        raise ValueError(
            f"n_neighbors={n_neighbors} must be at least 1 and below {n_cells} (cells)"
        )


def latent_matrix(values: ArrayLike, name: str) -> Latent:
    """Return a latent as a finite matrix ``[cells, latents]``."""
    latent = np.asarray(values)
    if latent.ndim != 2:  # noqa: PLR2004 -- a matrix
        raise ValueError(f"{name} must be a matrix [cells, latents], its shape is {latent.shape}")
    if not np.isfinite(latent).all():
        raise ValueError(f"{name} holds values that are not finite: did training diverge?")
    return latent


def label_codes(
    values: Sequence[object] | NDArray[Any] | pd.Series, name: str, n_cells: int
) -> Codes:
    """Integer code per cell, in the order of the classes' names as text."""
    given = pd.Series(np.asarray(values, dtype=object))
    if len(given) != n_cells:
        raise ValueError(f"{name} has {len(given)} values for {n_cells} cells")
    if given.isna().any():
        raise ValueError(f"{name} is missing for {int(given.isna().sum())} cells")
    found, codes = np.unique(given.astype(str).to_numpy(dtype=str), return_inverse=True)
    if len(found) == 1:
        raise ValueError(
            f"{name} has one value only, {str(found[0])!r}; scoring needs at least two"
        )
    return codes


def target_codes(
    condition: Sequence[object] | NDArray[Any] | pd.Series,
    background_category: object,
    n_cells: int,
) -> Codes:
    """1 for target cells and 0 for background cells."""
    label_codes(condition, "condition", n_cells)
    text = np.asarray(pd.Series(np.asarray(condition, dtype=object)).astype(str))
    names = sorted(set(text))
    found = position_of(background_category, names)
    if found is None:
        listed = ", ".join(map(repr, names))
        raise ValueError(f"no cell has condition {str(background_category)!r}; there are {listed}")
    target = text != names[found]
    if min(target.sum(), (~target).sum()) < 2:  # noqa: PLR2004 -- neighbours and distances
        raise ValueError(
            f"there are {(~target).sum()} background and {target.sum()} target cells; scoring "
            "needs at least two of each"
        )
    return np.asarray(target, dtype=np.intp)
