"""The cells of a table of effects: their groups, samples and strata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.analysis.means.settings import MeansSettings
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.data.columns import check_key, column, complete_column
from pyro_contrastive.methods.base import ModelBase
from pyro_contrastive.methods.labels import known_conditions
from pyro_contrastive.methods.means import cells_with_counts, strata_of, within_batches

__all__ = ["GroupedCells", "grouped_cells", "strata_within"]

Codes = NDArray[np.int64]
ALL_CELLS = "all cells"


@dataclass(frozen=True)
class GroupedCells:
    """Cells, each with its condition, size, and codes of group, sample and stratum.

    ``whole``: the stratum if the group is compared as a whole.
    """

    query: Query
    condition: Codes
    sizes: NDArray[np.float64]
    group: Codes
    groups: Sequence[str]
    sample: Codes
    samples: Sequence[str]
    stratum: Codes
    whole: Codes


def grouped_cells(
    model: ModelBase,
    obs: pd.DataFrame,
    query: Query,
    groupby: str | None,
    sample_key: str | None,
    settings: MeansSettings,
    seed: int,
) -> GroupedCells:
    """Look up the group, sample, stratum, condition and size of each cell that has them."""
    query, sizes = cells_with_counts(query)
    if groupby is not None:
        check_key("groupby", groupby, obs)
        grouped = column(obs, groupby).notna().to_numpy()[query.cells]
        query, sizes = query.of(query.cells[grouped]), sizes[grouped]
    condition = known_conditions(query.data)[query.cells]
    if not (condition == BACKGROUND).any():
        msg = "None of these cells is a background cell with counts: there is nothing to compare."
        raise ValueError(msg)
    stratum, strata = strata_of(model, obs, query, settings, seed)
    one = np.zeros(len(query), dtype=np.int64)
    group, groups = one, [ALL_CELLS]
    if settings.by_stratum:
        group, groups = stratum, [str(name) for name in strata]
    elif groupby is not None:
        group, groups = _codes(column(obs, groupby).iloc[query.cells])
    sample, samples = one, [""]
    if sample_key is not None:
        check_key("sample_key", sample_key, obs)
        sample, samples = _codes(complete_column(obs, sample_key).iloc[query.cells])
    whole = stratum
    if groupby is not None and not isinstance(settings.strata, str):
        whole, _ = within_batches(model, obs, query, np.full(len(query), "all"))
    sizes = sizes / sizes.mean()
    return GroupedCells(query, condition, sizes, group, groups, sample, samples, stratum, whole)


def strata_within(
    cells: GroupedCells, here: Codes, treated: NDArray[np.bool_], settings: MeansSettings
) -> Codes:
    """Return the strata of the cells of a group: one per batch if no other is shared.

    A few cells of a rare type can be scattered over the clusters of all cells.
    """
    stratum = cells.stratum[here]
    sides = [np.bincount(stratum[treated[here] == side], minlength=1) for side in (True, False)]
    n = min(map(len, sides))
    is_shared = (np.minimum(sides[0][:n], sides[1][:n]) >= settings.fewest_cells).any()
    return stratum if is_shared else cells.whole[here]


def _codes(values: pd.Series) -> tuple[Codes, list[str]]:
    """Return the code of each value, and the levels that occur, in the order of the categories."""
    levels = values.astype("category").cat.remove_unused_categories().cat
    return levels.codes.to_numpy(dtype=np.int64), levels.categories.astype(str).tolist()
