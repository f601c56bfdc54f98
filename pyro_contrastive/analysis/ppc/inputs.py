"""Inputs of a check: the data, their replicates, and which statistics to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive.analysis.ppc.custom import Function, Statistic
from pyro_contrastive.analysis.ppc.sums import Draws
from pyro_contrastive.observed.matrix import Matrix
from pyro_contrastive.observed.source import Observed, as_observed

__all__ = ["CheckSettings", "CheckedData", "ReplicateStream"]


@dataclass(frozen=True)
class CheckedData:
    """The data that replicates are compared with.

    Parameters
    ----------
    values
        ``[cells, genes]``: CSR, dense, or observations that are read some cells at a time.
    are_counts
        Whether the data are counts. If not, statistics that need counts are left out.
    groups
        Labels of the cells by key, each ``[cells]``: statistics of genes are computed in each
        group. A Series is brought into the order of `cell_names` by its index.
    contrast
        A key of `groups` and its background group: effects are those of its other groups against
        it. Default: no effects.
    gene_names, cell_names
        For the tables. Default: numbers.
    described
        Name of the source of the data, for errors.
    """

    values: Matrix | Observed
    are_counts: bool = True
    groups: Mapping[str, ArrayLike] = field(default_factory=dict)
    contrast: tuple[str, str] | None = None
    gene_names: ArrayLike | None = None
    cell_names: ArrayLike | None = None
    described: str = "this likelihood"

    def first_cells(self, n: int) -> Matrix:
        """Return the data of the first cells, at most `n`."""
        source = as_observed(self.values)
        return source.rows(np.arange(min(n, len(source))))

    def names_of_genes(self) -> NDArray[Any]:
        """Names of the genes, or their numbers."""
        return _names(self.gene_names, self.values.shape[1], "gene_names")

    def names_of_cells(self) -> NDArray[Any]:
        """Names of the cells, or their numbers."""
        return _names(self.cell_names, self.values.shape[0], "cell_names")


@dataclass(frozen=True)
class ReplicateStream:
    """Replicates that are drawn on demand.

    Parameters
    ----------
    parts
        Returns an iterator of arrays ``[samples, cells, genes]``, each for the next few cells, in
        the order of the data.
    n_samples
        Number of replicates.
    whole
        Returns one replicate of all cells by its number, ``[cells, genes]``, for functions that
        need it.
    """

    parts: Callable[[], Iterable[Draws]]
    n_samples: int
    whole: Callable[[int], Draws] | None = None

    @classmethod
    def of(cls, replicates: NDArray[Any], shape: tuple[int, ...]) -> ReplicateStream:
        """Take them from an array ``[samples, cells, genes]``, for data of this shape.

        Raises
        ------
        ValueError
            If the shape is another one.
        """
        array = np.asarray(replicates, dtype=np.float32)
        if array.ndim != 3 or array.shape[1:] != tuple(shape):  # noqa: PLR2004 - the axes above
            msg = (
                f"replicates has shape {list(array.shape)}; expected "
                f"[samples, {shape[0]}, {shape[1]}]."
            )
            raise ValueError(msg)
        return cls(lambda: [array], len(array), lambda number: array[number])


@dataclass(frozen=True)
class CheckSettings:
    """Which statistics are compared, and what is reported of them.

    Parameters
    ----------
    statistics
        Names. Default: all that have a meaning. See :data:`ALL_STATISTICS
        <pyro_contrastive.analysis.ppc.statistics.ALL_STATISTICS>`.
    functions
        User-defined statistics, by name: from ``[cells, genes]`` to a value per cell, per gene, or
        a single one. One per cell must depend on the cell's own counts only, and is called on some
        cells at a time. Any other is called with all cells of a replicate (of each group) at once,
        which takes a dense replicate in memory: 4 bytes x cells x genes.
    correlation_genes
        Positions of the genes whose pairwise correlations are compared. Default: the 30 with the
        largest variance of log(1 + counts).
    interval
        Probability between ``lower`` and ``upper``. It needs at least 2 / (1 - `interval`) - 1
        replicates.
    levels
        Probabilities of the intervals whose coverage is counted.
    """

    statistics: Iterable[str] | None = None
    functions: Mapping[str, Function | Statistic] | None = None
    correlation_genes: ArrayLike | None = None
    interval: float = 0.9
    levels: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)

    def check(self, n_samples: int) -> None:
        """Refuse probabilities out of range, or too few replicates for the interval.

        Raises
        ------
        ValueError
            In either case.
        """
        for value in (self.interval, *self.levels):
            if not 0 < value < 1:
                msg = f"interval and levels must be between 0 and 1, not {value}."
                raise ValueError(msg)
        fewest = int(np.ceil(2 / (1 - self.interval) - 1e-9)) - 1
        if n_samples < fewest:
            msg = (
                f"An interval of {self.interval} takes at least n_samples={fewest} replicates, not "
                f"{n_samples}: draw more, or use a smaller interval."
            )
            raise ValueError(msg)


def _names(given: ArrayLike | None, n: int, argument: str) -> NDArray[Any]:
    names = np.asarray([str(i) for i in range(n)] if given is None else given, dtype=object)
    if names.shape != (n,):
        msg = f"{argument} has {names.size} names for {n}."
        raise ValueError(msg)
    return names
