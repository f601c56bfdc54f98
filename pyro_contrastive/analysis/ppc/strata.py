"""Groups of cells by several keys at once, from sums that are kept once per combination."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.analysis.ppc.tables import ALL

Group = tuple[str, str]


class Strata:
    """All cells, and the groups that they form by each of several keys.

    Sums are accumulated by stratum, a combination of groups that occurs. The sum of a group is that
    of its strata, so that each cell is added once, however many keys there are.

    Parameters
    ----------
    labels
        Group of each cell by key, each ``[cells]``. Cells with a missing value are in no group of
        that key.
    n_cells
        Number of cells.

    Raises
    ------
    ValueError
        If there is not one label per cell, or a key is called ``"all"``.

    Examples
    --------
    >>> groups = Strata({"batch": ["b", "a", "b"]}, n_cells=3)
    >>> groups.names
    [('all', 'all'), ('batch', 'a'), ('batch', 'b')]
    >>> groups.cells(("batch", "b"))
    array([0, 2])
    """

    def __init__(self, labels: Mapping[str, Any], n_cells: int) -> None:
        codes, self.names = [], [(ALL, ALL)]
        levels: list[list[str]] = []
        for key, values in labels.items():
            column = pd.Series(np.asarray(values, dtype=object))
            if len(column) != n_cells:
                msg = f"The groups by {key!r} name {len(column)} cells; there are {n_cells}."
                raise ValueError(msg)
            if key == ALL:
                msg = (
                    f"A column of groups cannot be called {ALL!r}: that is the group of all cells."
                )
                raise ValueError(msg)
            text = column.astype(object).where(column.isna(), column.astype(str)).astype("category")
            codes.append(text.cat.codes.to_numpy(dtype=np.int64))
            levels.append([str(level) for level in text.cat.categories])
            self.names += [(key, level) for level in levels[-1]]
        table = np.stack(codes, axis=1) if codes else np.zeros((n_cells, 0), dtype=np.int64)
        combinations, self.strata = np.unique(table, axis=0, return_inverse=True)
        self.strata = self.strata.reshape(-1)
        self.n_strata = len(combinations)
        self._member = {(ALL, ALL): np.arange(self.n_strata)}
        for column_number, (key, names) in enumerate(zip(labels, levels, strict=True)):
            for code, name in enumerate(names):
                found = np.flatnonzero(combinations[:, column_number] == code)
                self._member[key, name] = found

    def members(self, group: Group) -> NDArray[np.int64]:
        """Strata of a group."""
        return self._member[group]

    def cells(self, group: Group) -> NDArray[np.int64]:
        """Positions of the cells of a group."""
        return np.flatnonzero(np.isin(self.strata, self._member[group]))
