"""One pass over data and replicates, some cells at a time, that fills the sums a check needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive.analysis.ppc.custom import Statistic
from pyro_contrastive.analysis.ppc.statistics import (
    CELL_STATISTICS,
    CORRELATION,
    EFFECT,
    GENE_STATISTICS,
    TRENDS,
    Moments,
)
from pyro_contrastive.analysis.ppc.strata import Group, Strata
from pyro_contrastive.analysis.ppc.sums import Draws, Floats, GeneSums, Ints, PairSums, RankSums
from pyro_contrastive.observed.matrix import Matrix
from pyro_contrastive.observed.source import Observed

PIT_BINS = 20


@dataclass(frozen=True)
class Plan:
    """What a check computes: its inputs, checked and with every default made explicit."""

    names: tuple[str, ...]
    groups: Strata
    contrast: Group | None
    functions: dict[str, Statistic]
    n_samples: int
    counts: bool
    interval: float
    levels: tuple[float, ...]
    pair_genes: Ints
    gene_names: NDArray[Any]
    cell_names: NDArray[Any]

    @property
    def cell_statistics(self) -> list[str]:
        """Names of the built-in statistics of cells."""
        return [name for name in CELL_STATISTICS if name in self.names]

    @property
    def needs_genes(self) -> bool:
        """Whether any statistic needs the moments of genes."""
        effects = EFFECT in self.names and self.contrast is not None
        return effects or any(n in GENE_STATISTICS or n in TRENDS for n in self.names)

    @property
    def functions_of_cells(self) -> dict[str, Statistic]:
        """The user's functions that are called on some cells at a time."""
        return {name: s for name, s in self.functions.items() if s.per == "cell"}

    @property
    def functions_of_all(self) -> dict[str, Statistic]:
        """The user's functions that see all cells of a replicate."""
        return {name: s for name, s in self.functions.items() if s.per != "cell"}


@dataclass
class SampleSums:
    """Sums over the data (one sample), or over their replicates (several)."""

    n_samples: int
    genes: GeneSums | None
    pairs: PairSums | None
    cells: dict[str, Floats]  # [samples, cells], by statistic
    whole: dict[tuple[str, Group], list[Floats]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, n_samples: int, n_genes: int) -> SampleSums:
        """Make empty sums for what the plan needs."""
        n_strata, n_cells = plan.groups.n_strata, len(plan.cell_names)
        pairs = None
        if CORRELATION in plan.names:
            pairs = PairSums(n_samples, n_strata, plan.pair_genes, logs=plan.counts)
        names = [*plan.cell_statistics, *plan.functions_of_cells]
        return cls(
            n_samples,
            GeneSums(n_samples, n_strata, n_genes) if plan.needs_genes else None,
            pairs,
            {name: np.empty((n_samples, n_cells)) for name in names},
        )

    def add(self, x: Draws, strata: Ints, cells: slice, plan: Plan) -> None:
        """Add some cells, ``[samples, cells, genes]``."""
        for sums in (self.genes, self.pairs):
            if sums is not None:
                sums.add(x, strata)
        for number, draw in enumerate(x):
            moments = Moments.of(draw.astype(np.float64), axis=1) if plan.cell_statistics else None
            for name in plan.cell_statistics:
                assert moments is not None
                self.cells[name][number, cells] = CELL_STATISTICS[name](moments)
            for name, statistic in plan.functions_of_cells.items():
                self.cells[name][number, cells] = statistic.values(draw, name)

    def add_whole(self, x: Draws, plan: Plan) -> None:
        """Add one replicate as a whole, ``[cells, genes]``."""
        for group in plan.groups.names:
            cells = plan.groups.cells(group)
            given = x if len(cells) == len(x) else x[cells]
            for name, statistic in plan.functions_of_all.items():
                self.whole.setdefault((name, group), []).append(statistic.values(given, name))


class Collected:
    """Sums over data and replicates.

    Parameters
    ----------
    plan
        The statistics to compute.
    n_genes
        Number of genes.
    rng
        Random numbers of the randomised ranks.
    """

    def __init__(self, plan: Plan, n_genes: int, rng: np.random.Generator) -> None:
        self.plan = plan
        self.n_genes = n_genes
        self.observed = SampleSums.of(plan, 1, n_genes)
        self.replicated = SampleSums.of(plan, plan.n_samples, n_genes)
        self.ranks = (
            RankSums(plan.groups.n_strata, plan.levels, PIT_BINS, rng) if plan.levels else None
        )

    def take(self, observed: Observed, stream: Iterable[Draws]) -> None:
        """Go once over the data and the replicates.

        Raises
        ------
        ValueError
            If the replicates have other sizes than the data.
        """
        n_cells = observed.shape[0]
        start = 0
        for x in stream:
            expected = (self.plan.n_samples, x.shape[1], self.n_genes)
            if x.shape != expected or start + x.shape[1] > n_cells:
                msg = (
                    f"Replicates of shape {list(x.shape)} came for cells from {start} on; expected "
                    f"[{self.plan.n_samples}, cells, {self.n_genes}], {n_cells} cells in all."
                )
                raise ValueError(msg)
            cells = slice(start, start + x.shape[1])
            rows = dense(observed.rows(np.arange(cells.start, cells.stop)))
            strata = self.plan.groups.strata[cells]
            self.observed.add(rows[None], strata, cells, self.plan)
            self.replicated.add(x, strata, cells, self.plan)
            if self.ranks is not None:
                self.ranks.add(rows, x, strata)
            start = cells.stop
        if start != n_cells:
            msg = f"There are replicates of {start} cells, and data of {n_cells}."
            raise ValueError(msg)

    def take_whole(self, observed: Observed, whole: Callable[[int], Draws] | None) -> None:
        """Go over the replicates one by one, for functions that see all cells at once.

        Raises
        ------
        ValueError
            If there is no way to get whole replicates.
        """
        if not self.plan.functions_of_all:
            return
        if whole is None:
            msg = (
                f"{list(self.plan.functions_of_all)} need all cells at once: give whole=, a "
                "function that returns a replicate by its number."
            )
            raise ValueError(msg)
        self.observed.add_whole(dense(observed.rows()), self.plan)
        for number in range(self.plan.n_samples):
            self.replicated.add_whole(np.asarray(whole(number), dtype=np.float32), self.plan)


def dense(rows: Matrix) -> Draws:
    """Return a matrix as a dense float32 array."""
    return np.asarray(rows if isinstance(rows, np.ndarray) else rows.toarray(), dtype=np.float32)
