"""Refined posteriors of the cells of a data set, each made when it is first asked for."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_contrastive.analysis.refined_posterior import RefinedGuide, RefinedPosterior
from pyro_contrastive.analysis.refinement import Refinement, refine
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.vae import ContrastiveVAE

__all__ = ["RefinedCells"]

CELLS_AT_A_TIME = 512
"""Cells that are refined together: memory is 16 arrays of these cells and all genes."""


class RefinedCells:
    """Refined posteriors, by the position of the cell.

    Questions that come back to a cell (a second pass over replicates, cells drawn with replacement)
    find its posterior made. Each takes ``4 n (n + 1)`` bytes for n latents, 1.7 kB for 20.

    Parameters
    ----------
    vae
        The model.
    n_cells
        Number of cells of the data set.
    settings
        How to refine. Default: :class:`~pyro_contrastive.analysis.refinement.Refinement`.
    """

    def __init__(
        self, vae: ContrastiveVAE, n_cells: int, settings: Refinement | None = None
    ) -> None:
        self.vae = vae
        self.settings = settings or Refinement()
        self._row_of = np.full(n_cells, -1)
        self._parts: list[RefinedPosterior] = []
        self._n_made = 0
        self._warned = False

    @classmethod
    def of(
        cls,
        vae: ContrastiveVAE,
        n_cells: int,
        cells: NDArray[np.int64],
        posterior: RefinedPosterior,
        settings: Refinement,
    ) -> RefinedCells:
        """Return a store that already has the posteriors of these cells."""
        made = cls(vae, n_cells, settings)
        made._add(cells, posterior)
        return made

    def anew(self) -> RefinedCells:
        """Return an empty store for the same cells, to be refined as these are."""
        return RefinedCells(self.vae, len(self._row_of), self.settings)

    def made(self) -> tuple[NDArray[np.int64], RefinedPosterior | None]:
        """Return the cells whose posterior is made, sorted, and their posteriors."""
        cells = np.flatnonzero(self._row_of >= 0)
        return cells, self._take(cells) if len(cells) else None

    def guide(self, batch: CellBatch, cells: NDArray[np.int64]) -> RefinedGuide:
        """Return the program that draws the latents of some cells from their refined posteriors.

        Parameters
        ----------
        batch
            The cells, with counts.
        cells
            Their positions in the data set.
        """
        missing = np.flatnonzero(self._row_of[cells] < 0)
        _, first = np.unique(cells[missing], return_index=True)  # a cell may be there twice
        missing = missing[np.sort(first)]
        if len(missing) == len(cells):
            self._refine(batch, cells)
        elif len(missing):
            chosen = torch.from_numpy(missing).to(batch.condition.device)
            self._refine(batch.take(chosen), cells[missing])
        return RefinedGuide(self.vae.guide, self._take(cells))

    def _refine(self, batch: CellBatch, cells: NDArray[np.int64]) -> None:
        if len(cells) <= CELLS_AT_A_TIME:
            posterior = refine(self.vae, batch, self.settings)
        else:
            every = torch.arange(len(cells), device=batch.condition.device)
            some = (batch.take(part) for part in torch.split(every, CELLS_AT_A_TIME))
            posterior = RefinedPosterior.cat([refine(self.vae, b, self.settings) for b in some])
        self._add(cells, posterior)
        failed = cells[posterior.failed.cpu().numpy()]
        if len(failed) and not self._warned:
            self._warned = True
            warnings.warn(
                f"Refinement failed for {len(failed)} cells, the first of them number {failed[0]}: "
                "their density under the model, or its gradient, is not finite. Their posterior is "
                "that of the guide.",
                UserWarning,
                stacklevel=2,
            )

    def _add(self, cells: NDArray[np.int64], posterior: RefinedPosterior) -> None:
        self._row_of[cells] = self._n_made + np.arange(len(cells))
        self._n_made += len(cells)
        self._parts.append(posterior)

    def _take(self, cells: NDArray[np.int64]) -> RefinedPosterior:
        """Return the posteriors of cells that have been made."""
        rows = self._row_of[cells]
        n_before = self._n_made - len(self._parts[-1])
        if rows.min() >= n_before:  # as in a first pass: all in the last part
            return self._parts[-1].take(self._positions(rows - n_before))
        self._parts = [RefinedPosterior.cat(self._parts)]
        return self._parts[0].take(self._positions(rows))

    def _positions(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(rows).to(self._parts[-1].mean.device)
