"""Sparse counts on a device, where rows are gathered without copies from the host."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from pyro_contrastive.observed.matrix import row_sums
from pyro_contrastive.observed.observation import Observation, SparseValues
from pyro_contrastive.observed.source import Indices, Observed
from pyro_contrastive.observed.sparse_rows import PAYS_BELOW, Compressed, SparseRows


class OnDevice(Observed):
    """Sparse counts in the memory of a device.

    Parameters
    ----------
    matrix
        The counts in the host's memory, where they stay for :meth:`rows`.
    device, dtype
        Device and dtype of the copy.
    """

    def __init__(self, matrix: csr_matrix, device: torch.device | str, dtype: torch.dtype) -> None:
        self.matrix, self.device, self.dtype = matrix, torch.device(device), dtype
        # On the host too: the lengths of rows must be known without waiting for the device.
        self._ends = matrix.indptr.astype(np.int64)
        self._entries = Compressed.of(matrix, device, dtype)
        totals = torch.as_tensor(row_sums(matrix), device=device, dtype=dtype)
        self._totals = totals.unsqueeze(-1)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and of features."""
        n_cells, n_features = self.matrix.shape
        return int(n_cells), int(n_features)

    def rows(self, cells: Indices | None = None) -> csr_matrix:
        """Return the rows of some cells in the host's memory."""
        return self.matrix if cells is None else self.matrix[cells]

    def observation(
        self,
        cells: Indices,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        dense: bool = True,
    ) -> Observation:
        """Return some cells, dense, and on a CPU as sparse rows too.

        Raises
        ------
        ValueError
            If `device` or `dtype` is not that of the counts.
        """
        if (torch.device(device).type, dtype) != (self.device.type, self.dtype):
            msg = f"These cells are {self.dtype} on {self.device}, not {dtype} on {device}."
            raise ValueError(msg)
        entries = self._gather(cells)
        n_entries, n_features = len(entries.values), self.shape[1]
        row = entries.rows_of(n_entries)
        values = entries.values.new_zeros((len(cells), n_features))
        values.view(-1)[row * n_features + entries.indices] = entries.values
        totals = self._totals[self.to_device(cells)]
        if self.device.type != "cpu" or n_entries > PAYS_BELOW * values.numel():
            return Observation(values, totals=totals)
        return Observation(
            SparseValues.of(values, entries), SparseRows(entries, n_features), totals
        )

    def _gather(self, cells: Indices) -> Compressed:
        """Gather rows. Their lengths are known on the host, which need not wait for the device."""
        lengths = np.diff(self._ends)[cells]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        offsets, starts = self.to_device(ends), self.to_device(self._ends[cells])
        n_entries = int(ends[-1])
        # An entry's place: where its row begins there, and how far it is into the row.
        shift = (starts - offsets[:-1]).repeat_interleave(offsets.diff(), output_size=n_entries)
        places = torch.arange(n_entries, device=self.device) + shift
        return Compressed(
            self._entries.indices[places].long(), offsets, self._entries.values[places]
        )

    def to_device(self, array: Indices) -> Tensor:
        """Copy indices to the device without waiting for it."""
        tensor = torch.as_tensor(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
