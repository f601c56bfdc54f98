"""The groups of cells to compare: named in a column of ``obs``, or two selections of cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.columns import check_key, column
from pyro_contrastive.data.indices import as_indices
from pyro_contrastive.data.levels import listed, position_of, suggestion

Indices = NDArray[np.int64]
Selection: TypeAlias = ArrayLike | str
"""Indices, a boolean mask, or a query of ``obs`` as ``pandas.DataFrame.query`` takes it."""

REST = "Rest"
"""Name of the second group when it is all other groups."""


@dataclass(frozen=True)
class GroupPair:
    """Two groups of cells to be compared.

    Parameters
    ----------
    cells1, cells2
        Indices of their cells; no cell is in both.
    name1, name2
        Names of the groups in ``obs``; ``None`` for cells selected by index.
    """

    cells1: Indices
    cells2: Indices
    name1: Any = None
    name2: Any = None


def group_pairs(
    obs: pd.DataFrame,
    *,
    groupby: str | None = None,
    group1: Any = None,
    group2: Any = None,
    idx1: Selection | None = None,
    idx2: Selection | None = None,
) -> list[GroupPair]:
    """Turn the user's selection into pairs of groups, without changing `obs`.

    Parameters
    ----------
    obs
        One row per cell.
    groupby
        Column with the groups. Cells with a missing value belong to no group.
    group1
        A group, or a list of groups, each compared separately. Default: every group (except
        `group2`).
    group2
        The group they are compared with. Default: all other groups together.
    idx1, idx2
        Instead: two selections of cells. Default of `idx2`: all cells not in `idx1`.

    Raises
    ------
    KeyError
        If `groupby` is not a column; the error lists the columns.
    ValueError
        If `groupby` and `idx1` are both given or both missing, a group is unknown or empty, there
        is only one, or a cell would be in both groups of a comparison.
    """
    by_group = {"groupby": groupby, "group1": group1, "group2": group2}
    if idx1 is not None:
        mixed = [name for name, value in by_group.items() if value is not None]
        if mixed:
            msg = f"Cells are already chosen by idx1; {' and '.join(mixed)} cannot be used too."
            raise ValueError(msg)
        return [_pair_by_index(obs, idx1, idx2)]
    if idx2 is not None:
        msg = "idx2 holds the cells that idx1 is compared with: give idx1 too."
        raise ValueError(msg)
    if groupby is None:
        msg = "Which cells are to be compared? Give groupby= (a column of adata.obs) or idx1=."
        raise ValueError(msg)
    return _pairs_by_group(obs, groupby, group1, group2)


def select_cells(selection: Selection, obs: pd.DataFrame, name: str) -> Indices:
    """Return the indices of the cells in a selection, sorted, each once.

    Raises
    ------
    ValueError
        If a query fails (the error lists the columns), or as ``as_indices`` does.
    """
    if not isinstance(selection, str):
        return np.unique(as_indices(selection, obs.index, name))
    row = "__row__"  # positions, not labels: the names of cells may repeat
    try:
        rows = obs.assign(**{row: np.arange(len(obs))}).query(selection)[row]
    except Exception as error:
        msg = (
            f"{name}={selection!r} does not work as a query of adata.obs: {error} "
            f"The columns are {list(obs.columns)}."
        )
        raise ValueError(msg) from error
    return np.unique(rows.to_numpy(dtype=np.int64))


def with_targets(data: CellData, obs: pd.DataFrame, target_idx: Selection | None) -> CellData:
    """Return the data with these cells as target, and all others as background.

    With ``None``, the condition of each cell decides.

    Raises
    ------
    ValueError
        If `target_idx` is ``None`` and the condition of the cells is not known: background cells
        would be decoded with a salient latent that was never trained for them.
    """
    if target_idx is not None:
        target = select_cells(target_idx, obs, "target_idx")
        return data.with_condition(np.setdiff1d(np.arange(len(data)), target), target)
    if data.condition is None:
        msg = (
            "Which cells are target (treated)? They are decoded with their salient latent, the "
            "others without. Give target_idx=, or set the data up with condition_key= and "
            "background=."
        )
        raise ValueError(msg)
    return data


def _pair_by_index(obs: pd.DataFrame, idx1: Selection, idx2: Selection | None) -> GroupPair:
    cells1 = select_cells(idx1, obs, "idx1")
    if idx2 is None:
        cells2 = np.setdiff1d(np.arange(len(obs)), cells1)
    else:
        cells2 = select_cells(idx2, obs, "idx2")
    for name, cells in (("idx1", cells1), ("idx2", cells2)):
        if not cells.size:
            remedy = " (idx1 holds all cells)" if idx2 is None and name == "idx2" else ""
            msg = f"{name} selects no cells{remedy}."
            raise ValueError(msg)
    both = np.intersect1d(cells1, cells2)
    if both.size:
        msg = f"{both.size} cells are in both idx1 and idx2, e.g. cell {both[0]}."
        raise ValueError(msg)
    return GroupPair(cells1, cells2)


def _pairs_by_group(obs: pd.DataFrame, groupby: str, group1: Any, group2: Any) -> list[GroupPair]:
    check_key("groupby", groupby, obs)
    values = column(obs, groupby).astype("category").cat
    codes = values.codes.to_numpy()  # -1: no value
    levels = values.categories.tolist()
    present = [level for code, level in enumerate(levels) if (codes == code).any()]
    if len(present) < 2:  # noqa: PLR2004 - a comparison takes two
        msg = f"All cells have {groupby} = {present}: there is nothing to compare."
        raise ValueError(msg)
    second = None if group2 is None else _find_group(group2, present, "group2", groupby)
    if group1 is None:
        firsts = [level for level in present if level != second]
    else:
        found = (_find_group(g, present, "group1", groupby) for g in listed(group1))
        firsts = list(dict.fromkeys(found))
    if not firsts:
        msg = f"group1 is empty; the groups of {groupby!r} are {present}."
        raise ValueError(msg)
    if second is not None and second in firsts:
        msg = f"group1 and group2 both hold {second!r}: a group cannot be compared with itself."
        raise ValueError(msg)

    def cells(level: Any) -> Indices:
        return np.flatnonzero(codes == levels.index(level))

    grouped = np.flatnonzero(codes >= 0)
    if second is None:
        rest = {level: np.setdiff1d(grouped, cells(level)) for level in firsts}
        return [GroupPair(cells(level), rest[level], level, REST) for level in firsts]
    return [GroupPair(cells(level), cells(second), level, second) for level in firsts]


def _find_group(value: Any, levels: list[Any], name: str, key: str) -> Any:
    """Return the level that equals `value`, or has its text: 3 and "3" are the same cluster."""
    found = position_of(value, levels)
    if found is not None:
        return levels[found]
    msg = (
        f"{name}={value!r} is not a group with cells in {key!r}; the groups are {levels}."
        f"{suggestion(value, levels)}"
    )
    raise ValueError(msg)
