"""Counts and codes of many cells, served as batches of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from pyro_contrastive.cells import BACKGROUND, CellBatch, X
from pyro_contrastive.likelihoods.gene_summary import GeneSummary
from pyro_contrastive.observed.matrix import Matrix, row_sums
from pyro_contrastive.observed.observation import Observation
from pyro_contrastive.observed.on_disk import Chosen, OnDisk
from pyro_contrastive.observed.source import Observed, as_observed

AT_A_TIME = 10_000
"""Number of cells whose counts are copied or checked at a time."""


@dataclass(frozen=True)
class CellData:
    """The parts of a data set that a model needs.

    Parameters
    ----------
    counts
        ``[cells, genes]``: a matrix in memory, CSR or dense; or any other :class:`Observed`.
    condition
        Code per cell, 0 = background; ``None`` when it is not known.
    conditions
        Names of the conditions by code; empty when there are none.
    batch
        Batch code per cell; ``None``: one batch.
    categorical
        Codes of categorical covariates, ``[cells, covariates]``, or ``None``.
    continuous
        Continuous covariates, ``[cells, covariates]``, or ``None``.
    size_factor
        Used as library size instead of the total counts, ``[cells]``, or ``None``.
    """

    counts: Matrix | Observed
    condition: NDArray[np.int64] | None = None
    conditions: tuple[str, ...] = ()
    batch: NDArray[np.int64] | None = None
    categorical: NDArray[np.int64] | None = None
    continuous: NDArray[np.float32] | None = None
    size_factor: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return self.observed[X].shape[0]

    @cached_property
    def observed(self) -> Mapping[str, Observed]:
        """The observations of each modality, by the name of its site."""
        return {X: as_observed(self.counts)}

    def rows(self, cells: NDArray[np.int64] | None = None) -> Matrix:
        """Return the counts of some cells (default: of all), ``[cells, genes]``, CSR or dense."""
        return self.observed[X].rows(cells)

    def chosen(
        self, cells: NDArray[np.int64], genes: NDArray[np.int64] | None = None
    ) -> Matrix | Observed:
        """Return the counts of some cells and genes (default: all genes).

        A matrix if the counts are in memory; otherwise they are read when they are needed.
        """
        source = self.observed[X]
        if isinstance(source, OnDisk):
            return Chosen(source, cells, genes)
        rows = source.rows(cells)
        return rows if genes is None else rows[:, genes]

    def totals(self, cells: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Total counts of some cells (default: of all), ``[cells]``."""
        return self.observed[X].totals(cells)

    def cells(
        self,
        indices: NDArray[np.int64],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        dense: bool = True,
    ) -> CellBatch:
        """Return some cells as tensors on `device`; counts and numbers as `dtype`, codes as int64.

        Cells of unknown condition are treated as target cells, so that both latents are available
        for them. With ``dense=False``, counts that are sparse enough come as sparse rows only,
        which is faster, and ``x`` is ``None``: see :meth:`Observation.of`.
        """
        return self._batch(
            indices,
            {
                site: source.observation(indices, device, dtype, dense=dense)
                for site, source in self.observed.items()
            },
            device,
            dtype,
        )

    def batches(
        self,
        steps: Iterable[NDArray[np.int64]],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        dense: bool = True,
    ) -> Iterator[CellBatch]:
        """Yield the cells of each of several steps, as :meth:`cells` returns them.

        Those on disk are read ahead, those of several steps together, in the background.
        """
        source = self.observed[X]
        if not isinstance(source, OnDisk):
            for indices in steps:
                yield self.cells(indices, device, dtype, dense=dense)
            return
        steps = list(steps)  # which may draw random numbers, and not in another thread
        with closing(source.observations(steps, device, dtype, dense=dense)) as found:
            for indices, counts in zip(steps, found, strict=True):
                yield self._batch(indices, {X: counts}, device, dtype)

    def _batch(
        self,
        indices: NDArray[np.int64],
        observed: Mapping[str, Observation],
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> CellBatch:
        def tensor(
            values: NDArray[np.generic] | None, dtype: torch.dtype | None = None
        ) -> Tensor | None:
            if values is None:
                return None
            return torch.as_tensor(values[indices], device=device, dtype=dtype)

        unknown = np.full(len(indices), BACKGROUND + 1)
        known = unknown if self.condition is None else self.condition[indices]
        size_factor = tensor(self.size_factor, dtype)
        return CellBatch(
            condition=torch.as_tensor(known, device=device),
            batch=tensor(self.batch),
            categorical=tensor(self.categorical),
            continuous=tensor(self.continuous, dtype),
            library=None if size_factor is None else size_factor.unsqueeze(-1),
            observed=observed,
        )

    def with_codes(self, condition: NDArray[np.int64]) -> CellData:
        """Return the same data with these condition codes, ``[cells]``."""
        return replace(self, condition=condition)

    def with_condition(self, background: NDArray[np.int64], target: NDArray[np.int64]) -> CellData:
        """Return the same data in which these cells are background and these are target.

        Target cells keep the treatment they have, if they have one.
        """
        known = np.full(len(self), BACKGROUND) if self.condition is None else self.condition
        condition = known.copy()
        condition[background] = BACKGROUND
        condition[target] = np.maximum(known[target], BACKGROUND + 1)
        # Cells in neither group keep their condition; they are in no mini-batch of training.
        return self.with_codes(condition)

    def gene_summary(self, cells: NDArray[np.int64]) -> GeneSummary:
        """Mean and spread of every gene over some cells, at least one, given by their indices."""

        def parts() -> Iterator[tuple[csr_matrix, NDArray[np.float64]]]:
            for some in in_parts(np.sort(cells)):  # the order of cells on disk
                counts = csr_matrix(self.rows(some))
                factors = self.size_factor
                known = row_sums(counts) if factors is None else factors[some].astype(np.float64)
                yield counts, known

        return GeneSummary.of(parts())

    def library_moments(self, n_batch: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and population variance of the log total counts of each batch, ``[batches]``.

        Cells without counts are left out, because their logarithm is infinite. A batch with fewer
        than two different totals has no variance of its own and takes that of all cells.

        Raises
        ------
        ValueError
            If the totals of all cells are equal (or there are none): a log-normal does not fit.
        """
        totals = self.totals()
        codes = np.zeros(len(self), dtype=np.int64) if self.batch is None else self.batch
        full = totals > 0
        logs, codes = np.log(totals[full]), codes[full]
        if logs.size == 0 or _variance(logs) == 0:
            msg = (
                "All cells have the same total count, so there is no distribution of library sizes "
                "to be learned. Use use_observed_lib_size=True."
            )
            raise ValueError(msg)
        groups = [logs[codes == b] for b in range(n_batch)]
        means = np.array([g.mean() if g.size else logs.mean() for g in groups])
        variances = np.array([_variance(g) for g in groups])
        return means, np.where(variances > 0, variances, logs.var())


def in_parts(cells: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield cells :data:`AT_A_TIME`; at least one part, which may be empty."""
    for start in range(0, max(len(cells), 1), AT_A_TIME):
        yield cells[start : start + AT_A_TIME]


def _variance(values: NDArray[np.float64]) -> float:
    """Return the population variance: exactly 0 for equal values, without rounding error."""
    return float(values.var()) if values.size and np.ptp(values) > 0 else 0.0
