"""A user-defined statistic: a function from counts to values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive.analysis.ppc.statistics import ALL_STATISTICS

Floats = NDArray[np.float64]
Function: TypeAlias = Callable[[NDArray[np.float32]], Any]
Per = Literal["cell", "gene", "data"]
PROBE_CELLS = 6


@dataclass(frozen=True)
class Statistic:
    """A function of counts, and whether its values belong to cells, to genes or to the data.

    Parameters
    ----------
    function
        Takes a dense matrix ``[cells, genes]`` float32, and returns one value per cell, one per
        gene, or a single one.
    per
        ``"cell"``: the value of a cell depends on its own counts only. The function is called on
        some cells at a time, so that replicates are never in memory as a whole. ``"gene"`` and
        ``"data"``: the function is given all cells (of a group, or of the data) at once; one dense
        replicate is in memory at a time.

    Raises
    ------
    ValueError
        If `per` is not one of the three.

    Examples
    --------
    >>> genes_seen = Statistic(lambda counts: (counts > 0).sum(axis=1), per="cell")
    >>> genes_seen.values(np.array([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]], dtype=np.float32))
    array([2., 1.])
    """

    function: Function
    per: Per

    def __post_init__(self) -> None:
        """Check `per`."""
        if self.per not in get_args(Per):
            msg = f"per must be one of {get_args(Per)}, not {self.per!r}."
            raise ValueError(msg)

    def values(self, x: NDArray[np.float32], name: str = "") -> Floats:
        """Call the function: ``[cells]``, ``[genes]`` or ``[1]``.

        Raises
        ------
        ValueError
            If the shape is another one.
        """
        found = np.asarray(self.function(x), dtype=np.float64)
        expected = {"cell": (len(x),), "gene": (x.shape[1],), "data": ()}[self.per]
        if found.shape != expected:
            msg = (
                f"The statistic {name!r} is one per {self.per}: of a matrix {list(x.shape)} it must"
                f" return shape {list(expected)}, not {list(found.shape)}."
            )
            raise ValueError(msg)
        return found.reshape(-1)


def as_statistics(
    functions: object, rows: Callable[[int], NDArray[np.float32]]
) -> dict[str, Statistic]:
    """Find out what the values of each function belong to, by calling it on a few cells.

    Parameters
    ----------
    functions
        Functions or statistics, by name.
    rows
        Returns the first cells of the data, dense, by their number.

    Raises
    ------
    TypeError
        If they are not given by name, or one is not a function.
    ValueError
        If a name is that of a built-in statistic, the shape of what a function returns fits
        neither cells nor genes, there are too few cells to find out, or the value of a cell depends
        on the other cells.
    """
    given = {} if functions is None else functions
    if not isinstance(given, Mapping):
        msg = "functions must be a dict, {name: function}."
        raise TypeError(msg)
    for name in given:
        if not isinstance(name, str):
            msg = f"functions: a name must be a string, not {name!r}."
            raise TypeError(msg)
        if name in ALL_STATISTICS:
            msg = f"functions: {name!r} is the name of a built-in statistic; choose another."
            raise ValueError(msg)
    return {name: _as_statistic(name, f, rows) for name, f in given.items()}


def _as_statistic(
    name: str, given: object, rows: Callable[[int], NDArray[np.float32]]
) -> Statistic:
    if isinstance(given, Statistic):
        statistic = given
    elif not callable(given):
        msg = f"The statistic {name!r} must be a function of counts, not {type(given).__name__}."
        raise TypeError(msg)
    else:
        statistic = Statistic(given, _kind(name, given, rows))
    if statistic.per == "cell":
        _check_independent_cells(name, statistic, rows)
    return statistic


def _kind(name: str, function: Function, rows: Callable[[int], NDArray[np.float32]]) -> Per:
    x = rows(PROBE_CELLS)
    if len(x) == x.shape[1]:
        x = x[:-1]  # with as many cells as genes, the shape would not say which it is
    found = np.shape(function(x))
    kinds: dict[tuple[int, ...], Per] = {(): "data", (len(x),): "cell", (x.shape[1],): "gene"}
    if found not in kinds or len(x) == 0:
        msg = (
            f"The statistic {name!r} returns shape {list(found)} for a matrix of {len(x)} cells and"
            f" {x.shape[1]} genes: it must return one value per cell, one per gene, or a single "
            "number."
        )
        raise ValueError(msg)
    return kinds[found]


def _check_independent_cells(
    name: str, statistic: Statistic, rows: Callable[[int], NDArray[np.float32]]
) -> None:
    x = rows(PROBE_CELLS)
    together = statistic.values(x, name)
    one_by_one = np.concatenate([statistic.values(x[i : i + 1], name) for i in range(len(x))])
    if not np.allclose(together, one_by_one, equal_nan=True):
        msg = (
            f"The statistic {name!r} gives a cell another value when it is called with other cells "
            "too. It is called on some cells at a time, so that the value of a cell must depend on "
            "its own counts only. A function that returns one value per gene, or a single one, "
            "sees all cells."
        )
        raise ValueError(msg)
