"""Counts of all cells on a device, where mini-batches are gathered without copies from the host."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.counts import row_sums
from pyro_contrastive.density.nonzero import remember_nonzero
from pyro_contrastive.observed.sparse_rows import PAYS_BELOW, Compressed, SparseRows

logger = logging.getLogger(__name__)
SHARE = 0.5
"""Share of a device's free memory that counts may take."""


class ResidentCells:
    """The cells of a :class:`CellData` on a device; :meth:`cells` returns the same mini-batches.

    Parameters
    ----------
    data
        The cells; their counts are sparse (CSR).
    device
        Where to keep them.
    dtype
        Of counts and other numbers.

    Raises
    ------
    TypeError
        If the counts are dense.
    """

    def __init__(self, data: CellData, device: torch.device | str, dtype: torch.dtype) -> None:
        if isinstance(data.counts, np.ndarray):
            msg = "ResidentCells keeps sparse counts; these are dense."
            raise TypeError(msg)
        self.conditions = data.conditions
        self.device, self.dtype = torch.device(device), dtype
        # On the host too: the lengths of rows must be known without asking the device for them.
        self._ends = data.counts.indptr.astype(np.int64)
        self._n_genes = int(data.counts.shape[1])
        self._rows = Compressed.of(data.counts, device, dtype)
        # All that is not counts, as one batch of all cells.
        empty = csr_matrix((len(data), 0), dtype=np.float32)
        bare = replace(data, counts=empty).cells(np.arange(len(data)), device, dtype, dense=False)
        totals = torch.as_tensor(row_sums(data.counts), device=device, dtype=dtype).unsqueeze(-1)
        library = totals if data.size_factor is None else bare.library
        self._cells = replace(bare, x=None, rows=None, library=library)

    def __len__(self) -> int:
        return len(self._cells)

    def cells(
        self,
        indices: NDArray[np.int64],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> CellBatch:
        """Return some cells, on a GPU without sparse rows: see :meth:`CellData.cells`.

        Raises
        ------
        ValueError
            If `device` or `dtype` is not that of the counts.
        """
        if (torch.device(device).type, dtype) != (self.device.type, self.dtype):
            msg = f"These cells are {self.dtype} on {self.device}, not {dtype} on {device}."
            raise ValueError(msg)
        counts = self._some_rows(indices)
        n_entries = len(counts.values)
        row = counts.rows_of(n_entries)
        x = counts.values.new_zeros((len(indices), self._n_genes))
        x.view(-1)[row * self._n_genes + counts.indices] = counts.values
        batch = replace(self._cells.take(self._to_device(indices)), x=x)
        if self.device.type != "cpu" or n_entries > PAYS_BELOW * x.numel():
            return batch
        remember_nonzero(x, lambda: (row, counts.indices.long()))
        return replace(batch, rows=SparseRows(counts, self._n_genes))

    def _some_rows(self, indices: NDArray[np.int64]) -> Compressed:
        """Gather rows. How long they are is known on the host: the device is not waited for."""
        lengths = np.diff(self._ends)[indices]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        offsets, starts = self._to_device(ends), self._to_device(self._ends[indices])
        n_entries = int(ends[-1])
        # An entry's place: where its row begins there, and how far it is into the row.
        shift = (starts - offsets[:-1]).repeat_interleave(offsets.diff(), output_size=n_entries)
        places = torch.arange(n_entries, device=self.device) + shift
        return Compressed(self._rows.indices[places].long(), offsets, self._rows.values[places])

    def _to_device(self, array: NDArray[np.int64]) -> Tensor:
        tensor = torch.as_tensor(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def near(data: CellData, device: torch.device, dtype: torch.dtype) -> CellData | ResidentCells:
    """Return the cells on the device itself if that is a GPU and they fit, else as they are."""
    if device.type != "cuda" or isinstance(data.counts, np.ndarray):
        return data
    needed = data.counts.nnz * (data.counts.indices.itemsize + dtype.itemsize)
    free, _ = torch.cuda.mem_get_info(device)
    if needed > SHARE * free:
        logger.info(
            "Counts stay on the host: they take %.1f GB, and %.1f GB are free on %s.",
            *(needed / 1e9, free / 1e9, device),
        )
        return data
    return ResidentCells(data, device, dtype)
