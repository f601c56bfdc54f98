"""A question to a fitted model: which cells it is about, and how they are decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive.analysis.progress import counted
from pyro_contrastive.analysis.refined_cells import RefinedCells
from pyro_contrastive.analysis.runs import device_of, dtype_of
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.vae import ContrastiveVAE

__all__ = ["EXPRESSION_SITES", "Decoding", "Query"]

DEFAULT_BATCH_SIZE = 1024
DRAWS_AT_A_TIME = 8192
"""Cells times posterior draws in memory, each with all genes, when no batch size is given."""


EXPRESSION_SITES = {"scale": ("scale", "rate"), "mean": ("mean_scale", "mean")}
"""The site of each kind of expression, and the site of the same times the library size."""


@dataclass(frozen=True)
class Decoding:
    """How cells are decoded.

    Parameters
    ----------
    site
        ``"scale"`` (normalised expression), ``"mean_scale"`` (the same with structural zeros, the
        mean of the counts), or, times the library size, ``"rate"`` or ``"mean"``.
    genes
        Indices of the genes to return. Default all.
    n_samples
        Posterior draws per cell.
    average
        Average over the draws (default), or keep them as a leading axis.
    batches
        Codes of the experimental batches to decode under, averaged over. Default: each cell's own.
    categorical, continuous
        Covariates to decode under: code or value by column. Those left out are each cell's own.
    """

    site: str = "scale"
    genes: NDArray[np.int64] | slice = field(default_factory=lambda: slice(None))
    n_samples: int = 1
    average: bool = True
    batches: Sequence[int] = ()
    categorical: Mapping[int, int] = field(default_factory=dict)
    continuous: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Query:
    """A model, the cells that it is asked about, and how these are decoded.

    Made once per question and handed down unchanged, so that no function between the user and the
    Pyro program takes these one by one.

    Parameters
    ----------
    vae
        The model.
    data
        The data set the cells are in.
    cells
        Positions of the cells in `data`, in the order of the answer. They may repeat.
    batch_size
        Cells in memory at a time. Default: see :meth:`minibatches`.
    decoding
        Settings of decoding, for questions about expression.
    obs_names
        Names of all cells of `data`, for tables.
    refined
        Refined posteriors of the cells of `data`. Default: the posterior of a cell is the guide's.
    """

    vae: ContrastiveVAE
    data: CellData
    cells: NDArray[np.int64]
    batch_size: int | None = None
    decoding: Decoding = field(default_factory=Decoding)
    obs_names: pd.Index | None = None
    refined: RefinedCells | None = None

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def names(self) -> pd.Index:
        """Names of the cells asked about, ``[cells]``; their positions if they have no names."""
        return pd.Index(self.cells) if self.obs_names is None else self.obs_names[self.cells]

    @property
    def genes(self) -> NDArray[np.int64]:
        """Positions of the genes asked about."""
        return np.arange(self.vae.n_input)[self.decoding.genes]

    def of(self, cells: NDArray[np.int64]) -> Query:
        """Return the same question about other cells of the same data."""
        return replace(self, cells=cells)

    def minibatches(self, n_samples: int = 1, *, dense: bool = True) -> Iterator[CellBatch]:
        """Yield the cells in order, some at a time, on the device of the model and in its dtype.

        Without a `batch_size` they come 1,024 at a time (2,048 if not dense), and fewer the more
        draws each is to have, so that memory does not grow with `n_samples`. A mini-batch counts as
        done, on the progress bar, when the next one is asked for.

        Parameters
        ----------
        n_samples
            Posterior draws that each cell is to have.
        dense
            ``False`` is enough for latents, which need no dense counts: see
            :meth:`CellData.cells <pyro_contrastive.data.cell_data.CellData.cells>`.

        Raises
        ------
        ValueError
            If `batch_size` is not positive.
        """
        check_arguments({"batch_size": self.batch_size})
        most = DEFAULT_BATCH_SIZE if dense else 2 * DEFAULT_BATCH_SIZE
        most = min(most, max(1, DRAWS_AT_A_TIME // max(n_samples, 1)))
        size = most if self.batch_size is None else self.batch_size
        device, dtype = device_of(self.vae), dtype_of(self.vae)
        with counted(len(self)) as bar:
            steps = (self.cells[start : start + size] for start in range(0, len(self), size))
            with closing(self.data.batches(steps, device, dtype, dense=dense)) as batches:  # type: ignore[type-var]  # a generator
                for batch in batches:
                    yield batch
                    bar.advance(len(batch))

    def with_programs(
        self, n_samples: int = 1, *, dense: bool = True
    ) -> Iterator[tuple[CellBatch, Any]]:
        """Yield the :meth:`minibatches`, each with the program that draws its latents.

        That is the guide, or the program with refined posteriors if there are any.
        """
        dense = dense or self.refined is not None
        start = 0
        with closing(self.minibatches(n_samples, dense=dense)) as batches:  # type: ignore[type-var]  # a generator
            for batch in batches:
                cells = self.cells[start : start + len(batch)]
                start += len(batch)
                yield batch, self.program(batch, cells)

    def program(self, batch: CellBatch, cells: NDArray[np.int64]) -> Any:
        """Return the program that draws the latents of some cells, given with their positions."""
        return self.vae.guide if self.refined is None else self.refined.guide(batch, cells)
