"""Which cells: indices and masks as users give them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive.cells import BACKGROUND

Indices = NDArray[np.int64]


def as_indices(indices: ArrayLike | None, n_cells: int, name: str = "indices") -> Indices:
    """Turn indices, a boolean mask or ``None`` (all cells) into an array of indices.

    Raises
    ------
    ValueError
        If a mask has the wrong length, an index is out of range, or they are not integers.
    """
    if indices is None:
        return np.arange(n_cells)
    array = np.asarray(indices)
    if (
        array.dtype == object
        and array.size
        and all(isinstance(v, bool | np.bool_) for v in array.flat)
    ):
        array = array.astype(bool)  # pandas' nullable booleans arrive as objects
    if array.dtype == bool:
        if array.shape != (n_cells,):
            msg = f"{name} is a mask of shape {array.shape}; there are {n_cells} cells."
            raise ValueError(msg)
        return np.flatnonzero(array)
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        msg = (
            f"{name} must be a list of integers (positions) or a boolean mask, not an array of "
            f"{array.dtype} and shape {array.shape}."
        )
        raise ValueError(msg)
    if array.min() < -n_cells or array.max() >= n_cells:
        msg = f"{name} holds {array.min()} to {array.max()}; there are {n_cells} cells."
        raise ValueError(msg)
    return array.astype(np.int64) % n_cells


def populations(
    condition: NDArray[np.int64] | None,
    background_indices: ArrayLike | None,
    target_indices: ArrayLike | None,
    n_cells: int,
) -> tuple[Indices, Indices]:
    """Return the background and the target cells: as given, or else by their condition.

    Raises
    ------
    ValueError
        If only one of the two is given, neither can be told, one is empty, or they overlap.
    """
    if (background_indices is None) != (target_indices is None):
        msg = "Give both background_indices and target_indices, or neither."
        raise ValueError(msg)
    if background_indices is not None:
        background = as_indices(background_indices, n_cells, "background_indices")
        target = as_indices(target_indices, n_cells, "target_indices")
    elif condition is not None:
        background = np.flatnonzero(condition == BACKGROUND)
        target = np.flatnonzero(condition != BACKGROUND)
    else:
        msg = (
            "Which cells are background and which are target? Give background_indices and "
            "target_indices, or set the data up with condition_key= and background=."
        )
        raise ValueError(msg)
    for name, cells in (("background", background), ("target", target)):
        if len(np.unique(cells)) != len(cells):
            msg = f"{name}_indices names some cells twice."
            raise ValueError(msg)
        if len(cells) == 0:
            msg = f"There are no {name} cells."
            raise ValueError(msg)
    both = np.intersect1d(background, target)
    if both.size:
        msg = f"{both.size} cells are both background and target, e.g. cell {both[0]}."
        raise ValueError(msg)
    return background, target
