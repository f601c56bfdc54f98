"""Cells on a device, from which mini-batches are taken without copies from the host."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pyro_contrastive.cells import CellBatch, X
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.observed.on_disk import OnDisk
from pyro_contrastive.observed.resident import OnDevice

logger = logging.getLogger(__name__)
SHARE = 0.5
"""Share of a device's free memory that counts may take up."""


class ResidentCells:
    """The cells of a :class:`CellData` on a device; :meth:`cells` returns the same mini-batches.

    Parameters
    ----------
    data
        The cells; their counts are sparse (CSR).
    device
        Device to keep them on.
    dtype
        Dtype of counts and other numbers.

    Raises
    ------
    TypeError
        If the counts are dense.
    """

    def __init__(self, data: CellData, device: torch.device | str, dtype: torch.dtype) -> None:
        counts = data.rows()
        if isinstance(counts, np.ndarray):
            msg = "ResidentCells keeps sparse counts; these are dense."
            raise TypeError(msg)
        self.conditions = data.conditions
        self.counts = OnDevice(counts, device, dtype)
        # Everything but the counts, for all cells at once: mini-batches are taken from it on the
        # device.
        empty = csr_matrix((len(data), 0), dtype=np.float32)
        bare = replace(data, counts=empty).cells(np.arange(len(data)), device, dtype)
        library = None if data.size_factor is None else bare.library
        self._cells = CellBatch(
            bare.condition, None, bare.batch, bare.categorical, bare.continuous, library
        )

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
        observed = {X: self.counts.observation(indices, device, dtype)}
        return replace(self._cells.take(self.counts.to_device(indices)), observed=observed)

    def batches(
        self,
        steps: Iterable[NDArray[np.int64]],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[CellBatch]:
        """Yield the cells of each of several steps."""
        return (self.cells(indices, device, dtype) for indices in steps)


def on_device_if_it_fits(
    data: CellData, device: torch.device, dtype: torch.dtype
) -> CellData | ResidentCells:
    """Copy the cells to the device if it is a GPU and they fit; else return them unchanged."""
    if device.type != "cuda" or isinstance(data.observed[X], OnDisk):
        return data
    counts = data.rows()
    if isinstance(counts, np.ndarray):
        return data
    needed = counts.nnz * (counts.indices.itemsize + dtype.itemsize)
    free, _ = torch.cuda.mem_get_info(device)
    if needed > SHARE * free:
        logger.info(
            "Counts stay on the host: they take %.1f GB, and %.1f GB are free on %s.",
            *(needed / 1e9, free / 1e9, device),
        )
        return data
    return ResidentCells(data, device, dtype)
