"""Selections of cells, indices or masks, as users give them."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive.cells import BACKGROUND

Indices = NDArray[np.int64]


_LABELLED = {"xarray", "awkward"}
"""Libraries whose arrays have labels or nesting that would be lost silently in a plain array."""


def as_indices(indices: Any, cells: pd.Index | int, name: str = "indices") -> Indices:
    """Turn indices, a boolean mask or ``None`` (all cells) into an array of indices.

    A mask that is a pandas Series is reordered by its index to match the cells; integers are
    positions, whatever their index.

    Parameters
    ----------
    indices
        The user's selection.
    cells
        Names of the cells, or their number if they have no names.
    name
        Name of the argument, for error messages.

    Raises
    ------
    ValueError
        If a mask has the wrong length or the index of other cells, an index is out of range, or the
        values are neither integers nor truth values.
    """
    names = pd.RangeIndex(cells) if isinstance(cells, int) else cells
    n_cells = len(names)
    if indices is None:
        return np.arange(n_cells)
    array = _as_array(indices, name)
    if array.dtype == bool:
        if array.shape != (n_cells,):
            msg = f"{name} is a mask of shape {array.shape}; there are {n_cells} cells."
            raise ValueError(msg)
        if isinstance(indices, pd.Series):
            array = array[order_of(indices.index, names, name)]
        return np.flatnonzero(array)
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        msg = (
            f"{name} must be a list of integers (positions) or a boolean mask, not an array of "
            f"{array.dtype} and shape {array.shape}."
        )
        raise ValueError(msg + _advice(array))
    if len(array) == n_cells > 2 and np.isin(array, (0, 1)).all():  # noqa: PLR2004
        msg = (
            f"{name} holds one 0 or 1 for each cell, which would be the positions of the first two "
            f"cells. For a mask give truth values: {name}.astype(bool)."
        )
        raise ValueError(msg)
    if array.min() < -n_cells or array.max() >= n_cells:
        msg = f"{name} holds {array.min()} to {array.max()}; there are {n_cells} cells."
        raise ValueError(msg)
    return array.astype(np.int64) % n_cells


def check_some(cells: Sized, name: str = "indices") -> None:
    """Refuse a selection of no cells, where the answer is about all of them together.

    Raises
    ------
    ValueError
        If there are none.
    """
    if not len(cells):
        msg = f"{name} selects no cells: there is nothing to compute."
        raise ValueError(msg)


def order_of(index: pd.Index, names: pd.Index, what: str) -> Indices | slice:
    """Return the positions that bring values with this index into the order of the cells.

    Parameters
    ----------
    index
        Index of the values, one per cell.
    names
        Names of the cells.
    what
        Name of the values, for error messages.

    Raises
    ------
    ValueError
        If the index does not identify the cell of each value: it holds other names, or repeats.
    """
    if index.equals(names):
        return slice(None)
    own, theirs = (pd.Index([str(name) for name in given]) for given in (index, names))
    if own.equals(theirs):
        return slice(None)
    same = len(own) == len(theirs) and own.isin(theirs).all() and theirs.isin(own).all()
    if _are_positions(index):
        if not same:
            return slice(None)
        msg = (
            f"{what} is a Series with the index 0, 1, 2 ..., and these numbers are also the "
            "names of the cells, in another order, so that it is ambiguous. For positions give "
            f"{what}.to_numpy(); for names give it an index of strings that are the cell names."
        )
        raise ValueError(msg)
    if same and own.is_unique and theirs.is_unique:
        return own.get_indexer(theirs).astype(np.int64)
    msg = (
        f"{what} is a Series whose index is not that of the cells: {_difference(own, theirs)}. "
        f"Give one value for each cell, with the cell names as index, as columns of adata.obs have "
        f"it; or {what}.to_numpy(), if the values are in the order of the cells."
    )
    raise ValueError(msg)


def in_order(values: Any, names: pd.Index | None, what: str) -> Any:
    """Return values, one per cell, in the order of the cells, which only a Series defines.

    Parameters
    ----------
    values
        A Series is reordered by its index; anything else is returned unchanged.
    names
        Names of the cells; ``None`` if they have none, and the order does not change.
    what
        Name of the values, for error messages.

    Raises
    ------
    ValueError
        As :func:`order_of`; also if the values are in a data frame, or in an array whose labels
        would be ignored.
    """
    _refuse_labelled(values, what)
    if names is None or not isinstance(values, pd.Series) or len(values) != len(names):
        return values
    return values.iloc[order_of(values.index, names, what)]


def names_of(*values: object) -> pd.Index | None:
    """Return the names of the cells: the index of the first of the values that has names."""
    for each in values:
        if isinstance(each, pd.Series | pd.DataFrame) and not _are_positions(each.index):
            return each.index
    return None


def _are_positions(index: pd.Index) -> bool:
    """Tell whether an index is the default one of pandas."""
    return bool(pd.api.types.is_integer_dtype(index.dtype)) and index.equals(
        pd.RangeIndex(len(index))
    )


def _difference(own: pd.Index, theirs: pd.Index) -> str:
    """Describe how an index differs from the names of the cells."""
    for names, whose in ((own, "its names"), (theirs, "the names of the cells")):
        if not names.is_unique:
            return f"{whose} repeat, e.g. {names[names.duplicated()][0]!r}"
    n_missing = int((~theirs.isin(own)).sum())
    return f"{n_missing} of the {len(theirs)} cells are not in it, e.g. {_first(theirs, own)}"


def _first(names: pd.Index, others: pd.Index) -> str:
    return repr(names[~names.isin(others)][0])


def _as_array(indices: Any, name: str) -> NDArray[Any]:
    """Return an array, of bool or integers where possible; missing values are refused."""
    _refuse_labelled(indices, name)
    if type(indices).__module__.startswith("scipy.sparse"):
        msg = (
            f"{name} is a sparse matrix of shape {indices.shape}; a mask must be one value for "
            f"each cell: {name}.toarray().ravel()."
        )
        raise ValueError(msg)
    if isinstance(indices, np.ma.MaskedArray) and np.ma.is_masked(indices):
        msg = f"{name} is a masked array with masked entries; leave them out: {name}.compressed()."
        raise ValueError(msg)
    try:
        array = np.asarray(indices)
    except ValueError as error:  # lists of several lengths
        msg = f"{name} must be one list of integers (positions) or a boolean mask: {error}."
        raise ValueError(msg) from error
    if array.dtype != object or not array.size:
        return array
    # pandas' nullable types and categories arrive as objects.
    n_missing = int(np.sum(pd.isna(array)))
    if 0 < n_missing < array.size:
        msg = f"{name} is missing in {n_missing} cells: fill it in, as by {name}.fillna(False)."
        raise ValueError(msg)
    for kind, types in ((bool, (bool, np.bool_)), (np.int64, (int, np.integer))):
        if all(isinstance(value, types) for value in array.flat):
            return array.astype(kind)
    return array


def _refuse_labelled(values: Any, name: str) -> None:
    """Refuse values whose labels would be ignored."""
    if isinstance(values, pd.DataFrame):
        columns = list(values.columns)[:3]
        msg = f"{name} is a DataFrame; give one column of it, such as {name}[{columns[0]!r}]."
        raise ValueError(msg if columns else f"{name} is an empty DataFrame.")
    if type(values).__module__.split(".")[0] in _LABELLED:
        msg = (
            f"{name} is a {type(values).__name__}, whose labels would be ignored; give a "
            f"NumPy array in the order of the cells, or a pandas Series with the cell names as "
            "index."
        )
        raise ValueError(msg)


def _advice(array: NDArray[Any]) -> str:
    if array.dtype.kind in "UO" and array.size and isinstance(array.flat[0], str):
        return " For names of cells give a mask: adata.obs_names.isin(names)."
    return ""


def populations(
    condition: NDArray[np.int64] | None,
    background_indices: ArrayLike | None,
    target_indices: ArrayLike | None,
    cells: pd.Index | int,
) -> tuple[Indices, Indices]:
    """Return the background and the target cells, as given or by their condition.

    Indices and `cells` as in :func:`as_indices`.

    Raises
    ------
    ValueError
        If only one of the two is given, neither is known, one is empty, or they overlap.
    """
    if (background_indices is None) != (target_indices is None):
        msg = "Give both background_indices and target_indices, or neither."
        raise ValueError(msg)
    if background_indices is not None:
        background = as_indices(background_indices, cells, "background_indices")
        target = as_indices(target_indices, cells, "target_indices")
    elif condition is not None:
        background = np.flatnonzero(condition == BACKGROUND)
        target = np.flatnonzero(condition != BACKGROUND)
    else:
        msg = (
            "Which cells are background and which are target? Give background_indices and "
            "target_indices, or set the data up with condition_key= and background=."
        )
        raise ValueError(msg)
    for name, named in (("background", background), ("target", target)):
        if len(np.unique(named)) != len(named):
            msg = f"{name}_indices names some cells twice."
            raise ValueError(msg)
        if len(named) == 0:
            msg = f"There are no {name} cells."
            raise ValueError(msg)
    both = np.intersect1d(background, target)
    if both.size:
        msg = f"{both.size} cells are both background and target, e.g. cell {both[0]}."
        raise ValueError(msg)
    return background, target
