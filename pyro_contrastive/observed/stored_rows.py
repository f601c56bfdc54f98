"""A sparse matrix stored by rows in a file, of which some rows are read at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pyro_contrastive._tools.invalid_file import InvalidFileError

Indices = NDArray[np.int64]
Signature = tuple[tuple[str, int, int], ...]
"""Name, size and time of the last change of each file that a matrix is in."""
GAP = 4_096
"""Stored values between two rows that are read along with them: seeking costs as much."""


@dataclass(frozen=True)
class StoredRows:
    """A matrix in compressed form by rows (CSR), whose arrays are in a file.

    Parameters
    ----------
    name
        The place of the matrix, for messages.
    shape
        Number of cells and of features.
    indices, values
        Arrays on disk, ``[stored values]``: anything that gives a NumPy array for a slice, such as
        a dataset of h5py or an array of zarr.
    offsets
        Where each row begins and the last one ends, in memory, ``[cells + 1]``.
    values_per_chunk
        Number of values that are read at least, whatever is asked for.
    signature
        Returns size and time of the last change of the files, by which changes are noticed.

    Raises
    ------
    InvalidFileError
        If the arrays do not fit each other.
    """

    name: str
    shape: tuple[int, int]
    indices: Any
    values: Any
    offsets: Indices
    values_per_chunk: int
    signature: Callable[[], Signature]
    opened: Signature = field(init=False)

    def __post_init__(self) -> None:
        """Check that the arrays fit each other, and note how the files are."""
        object.__setattr__(self, "opened", self.signature())
        ends = self.offsets
        fits = (
            len(ends) == self.shape[0] + 1
            and ends[0] == 0
            and bool((np.diff(ends) >= 0).all())
            and ends[-1] <= min(self.indices.shape[0], self.values.shape[0])
        )
        if not fits:
            raise self._damaged("the ends of its rows do not fit its shape or its values")

    @property
    def values_per_row(self) -> float:
        """Number of stored values of a row, on average."""
        return float(self.offsets[-1]) / max(self.shape[0], 1)

    def rows(self, cells: Indices) -> csr_matrix:
        """Read some rows, given by sorted positions without repeats.

        Rows that are close to each other are read in one piece.

        Raises
        ------
        InvalidFileError
            If the files were changed or removed since they were opened, or are damaged.
        """
        self.check_unchanged()
        starts, stops = self._pieces(cells)
        sizes = self.offsets[stops] - self.offsets[starts]
        n_values = int(sizes.sum())
        indices = np.empty(n_values, dtype=np.int32)
        values = np.empty(n_values, dtype=np.float32)
        at = 0
        for start, stop in zip(self.offsets[starts], self.offsets[stops], strict=True):
            piece = slice(at, at + int(stop - start))
            indices[piece] = self._columns(int(start), int(stop))
            values[piece] = self._read(self.values, int(start), int(stop))
            at = piece.stop
        return self._chosen(cells, starts, stops, indices, values)

    def check_unchanged(self) -> None:
        """Refuse to read on from files that were changed or removed since they were opened.

        Raises
        ------
        InvalidFileError
            If they were.
        """
        try:
            now = self.signature()
        except OSError as error:
            msg = (
                f"{self.name} is not there any more ({error}). Put it back, and open it again; "
                "nothing may remove data on disk while a model reads them."
            )
            raise InvalidFileError(msg) from error
        if now != self.opened:
            msg = (
                f"{self.name} was changed since it was opened, so that cells and counts may not "
                "belong together. Open it again, and let nothing write to it meanwhile."
            )
            raise InvalidFileError(msg)

    def _pieces(self, cells: Indices) -> tuple[Indices, Indices]:
        """First row, and row after the last, of each piece to read."""
        if not len(cells):
            return cells, cells
        between = self.offsets[cells[1:]] - self.offsets[cells[:-1] + 1]
        breaks = np.flatnonzero(between > GAP) + 1
        return cells[np.r_[0, breaks]], cells[np.r_[breaks - 1, -1]] + 1

    def _read(self, array: Any, start: int, stop: int) -> NDArray[Any]:
        try:
            found = np.asarray(array[start:stop])
        except Exception as error:  # a damaged file may raise any error
            self.check_unchanged()
            raise self._damaged(f"it cannot be read ({error})") from error
        if found.shape != (stop - start,):
            raise self._damaged("values are missing at its end")
        return found

    def _columns(self, start: int, stop: int) -> NDArray[Any]:
        """Read columns, and refuse those outside the matrix, since compiled code follows them."""
        found = self._read(self.indices, start, stop)
        if found.size and not 0 <= found.min() <= found.max() < self.shape[1]:
            raise self._damaged("some of its values are in columns that it does not have")
        return found

    def _chosen(
        self,
        cells: Indices,
        starts: Indices,
        stops: Indices,
        indices: NDArray[np.int32],
        values: NDArray[np.float32],
    ) -> csr_matrix:
        """Make a matrix of the pieces, and leave out rows that were not asked for."""
        n_rows = stops - starts
        first = np.concatenate([[0], np.cumsum(n_rows)])  # of each piece among the rows read
        read = np.arange(first[-1]) + np.repeat(starts - first[:-1], n_rows)
        ends = np.concatenate([[0], np.cumsum(self.offsets[read + 1] - self.offsets[read])])
        whole = csr_matrix((values, indices, ends), shape=(len(read), self.shape[1]))
        return whole if len(read) == len(cells) else whole[np.searchsorted(read, cells)]

    def _damaged(self, what: str) -> InvalidFileError:
        return InvalidFileError(
            f"{self.name} is a damaged sparse matrix: {what}. Write the data again from their "
            "source."
        )
