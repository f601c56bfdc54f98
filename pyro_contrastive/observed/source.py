"""Observations of many cells, in whatever place they are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_contrastive.observed.matrix import Matrix, row_sums
from pyro_contrastive.observed.observation import Observation

Indices = NDArray[np.int64]


class Observed(ABC):
    """Observations of many cells in one modality: a number for each cell and feature.

    Subclasses define where the numbers are kept: in memory, on a device, or in a file. They must
    implement :attr:`shape` and :meth:`rows`, and may override the others where there is a faster
    way.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Number of cells and of features."""

    @abstractmethod
    def rows(self, cells: Indices | None = None) -> Matrix:
        """Return the rows of some cells (default: of all) in the host's memory.

        Parameters
        ----------
        cells
            Positions, in the order of the answer. They need not be sorted, and may repeat.

        Returns
        -------
        ``[cells, features]``: a NumPy array, or a SciPy CSR matrix without duplicate entries and
        without stored zeros.
        """

    def __len__(self) -> int:
        return self.shape[0]

    def totals(self, cells: Indices | None = None) -> NDArray[np.float64]:
        """Sum of the values of some cells (default: of all), ``[cells]``."""
        return row_sums(self.rows(cells))

    def blocks(self, cells: Indices | None = None) -> Iterator[tuple[Indices, Matrix]]:
        """Yield some cells (default: all) in parts small enough for memory; at least one part.

        Each comes with the positions of its cells among those asked for. Data in memory come as
        one part. The order of the cells is not kept.
        """
        n_cells = len(self) if cells is None else len(cells)
        yield np.arange(n_cells), self.rows(cells)

    def observations(
        self,
        steps: Iterable[Indices],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        dense: bool = True,
    ) -> Iterator[Observation]:
        """Yield the cells of each of several steps as tensors: see :meth:`observation`."""
        for cells in steps:
            yield self.observation(cells, device, dtype, dense=dense)

    def observation(
        self,
        cells: Indices,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        dense: bool = True,
    ) -> Observation:
        """Return some cells as tensors: see :meth:`Observation.of`."""
        return Observation.of(self.rows(cells), device, dtype, dense=dense)


class InMemory(Observed):
    """A matrix in the host's memory.

    Parameters
    ----------
    matrix
        CSR or dense.
    """

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and of features."""
        n_cells, n_features = self.matrix.shape
        return int(n_cells), int(n_features)

    def rows(self, cells: Indices | None = None) -> Matrix:
        """Return the rows of some cells; of all without a copy."""
        return self.matrix if cells is None else self.matrix[cells]


def as_observed(given: Matrix | Observed) -> Observed:
    """Wrap a matrix as :class:`InMemory`; return any other observation unchanged."""
    return given if isinstance(given, Observed) else InMemory(given)
