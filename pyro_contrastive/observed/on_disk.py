"""Observations that stay on disk, in one or several sparse matrices."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from pyro_contrastive.observed.background import in_background
from pyro_contrastive.observed.matrix import Matrix, row_sums
from pyro_contrastive.observed.observation import Observation
from pyro_contrastive.observed.source import Indices, Observed
from pyro_contrastive.observed.stored_rows import StoredRows

Check: TypeAlias = Callable[[csr_matrix, Indices], None]
"""Refuses values, given the positions of their cells, by raising an error."""
BYTES_AT_A_TIME = 64 * 2**20
"""Memory that the cells read at a time may take."""
BYTES_PER_VALUE = 8
MOST_CELLS_AT_A_TIME = 32_768
FEWEST_CELLS_AT_A_TIME = 256
FEWEST_PER_BLOCK = 64
"""Cells that are read in one piece at least: fewer would take longer to find than to read."""
CHUNKS_PER_BLOCK = 4
"""Chunks that are read in one piece: what is read of the first and the last one beside is lost."""
READS_PER_WINDOW = 4
"""How many times as many cells are read, and shuffled, together in training."""
FEWEST_BLOCKS = 512
"""Number of places from which the cells that are shuffled together come, at least.

With 100 or 200, the held-out ELBO of cells sorted by type is worse by more than seeds differ.
"""
_MANY = 0.1
"""Share of the cells from which on the totals of all are computed, and kept, rather than some."""
_N_KEPT = 8


@dataclass(frozen=True, eq=False)
class OnDisk(Observed):
    """Rows of sparse matrices on disk, one matrix after the other; never all in memory at once.

    Parameters
    ----------
    parts
        The matrices, with the same features.
    cells
        Which rows of them, counted through all parts, in the order of the observations; ``None``:
        all.
    features
        Positions of the features, in the order of the observations; ``None``: all.
    checks
        Called with everything that is read.
    """

    parts: tuple[StoredRows, ...]
    cells: Indices | None = None
    features: Indices | None = None
    checks: tuple[Check, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and of features."""
        n_cells = self._starts()[-1] if self.cells is None else len(self.cells)
        n_features = self.parts[0].shape[1] if self.features is None else len(self.features)
        return int(n_cells), n_features

    def _starts(self) -> Indices:
        """Where each part begins, and the last one ends, among all rows."""
        return np.cumsum([0, *(part.shape[0] for part in self.parts)])

    def of(self, cells: Indices | None = None, features: Indices | None = None) -> OnDisk:
        """Return some cells and features of these; nothing is read."""
        if cells is not None and self.cells is not None:
            cells = self.cells[cells]
        if features is not None and self.features is not None:
            features = self.features[features]
        chosen = self.cells if cells is None else cells
        return replace(self, cells=chosen, features=self.features if features is None else features)

    def checked_by(self, check: Check) -> OnDisk:
        """Return the same observations, with `check` called on everything that is read."""
        return replace(self, checks=(*self.checks, check))

    def in_order(self, cells: Indices) -> Indices:
        """Return cells in the order in which they are on disk."""
        places = cells if self.cells is None else self.cells[cells]
        return cells[np.argsort(places, kind="stable")]

    @property
    def cells_at_a_time(self) -> int:
        """Number of cells that are read at a time, by their average size."""
        size = BYTES_PER_VALUE * max(part.values_per_row for part in self.parts)
        fitting = int(BYTES_AT_A_TIME / max(size, 1.0))
        return min(max(fitting, FEWEST_CELLS_AT_A_TIME), MOST_CELLS_AT_A_TIME)

    @property
    def cells_per_window(self) -> int:
        """Number of cells that are shuffled, and read, together in training."""
        return READS_PER_WINDOW * self.cells_at_a_time

    @property
    def cells_per_block(self) -> int:
        """Number of neighbours on disk that are read together when cells are shuffled."""
        chunk = max(part.values_per_chunk / max(part.values_per_row, 1.0) for part in self.parts)
        wanted = max(CHUNKS_PER_BLOCK * chunk, FEWEST_PER_BLOCK)
        return int(min(wanted, self.cells_per_window / FEWEST_BLOCKS))

    @property
    def layout(self) -> dict[str, int | str]:
        """What the order depends on in which cells are shuffled, by the names of its parts."""
        cells = np.arange(self.shape[0]) if self.cells is None else self.cells
        return {
            "cells shuffled together": self.cells_per_window,
            "cells per block on disk": self.cells_per_block,
            "order on disk": hashlib.sha256(np.argsort(cells, kind="stable").tobytes()).hexdigest(),
        }

    def rows(self, cells: Indices | None = None) -> csr_matrix:
        """Read the rows of some cells, in order of their place on disk.

        Raises
        ------
        InvalidFileError
            If a file was changed or removed since it was opened, or is damaged.
        ValueError
            If a value is missing or infinite, or refused by a check.
        """
        asked = np.arange(self.shape[0]) if cells is None else np.asarray(cells, dtype=np.int64)
        places = asked if self.cells is None else self.cells[asked]
        wanted, at = np.unique(places, return_inverse=True)
        found = self._read(wanted)
        if len(wanted) != len(places) or not np.array_equal(wanted, places):
            found = found[at.reshape(-1)]
        for check in self.checks:
            check(found, asked)
        return found

    def _read(self, places: Indices) -> csr_matrix:
        """Read rows by their sorted places among the rows of all parts."""
        starts = self._starts()
        bounds = np.searchsorted(places, starts)
        read = [
            part.rows(places[low:high] - start)
            for part, start, low, high in zip(
                self.parts, starts[:-1], bounds[:-1], bounds[1:], strict=True
            )
            if high > low
        ]
        found = read[0] if len(read) == 1 else None
        if found is None:
            empty = csr_matrix((0, self.parts[0].shape[1]), dtype=np.float32)
            found = vstack(read, format="csr") if read else empty
        if self.features is not None:
            found = found[:, self.features]
        if not found.has_canonical_format:
            found.sum_duplicates()
        if (found.data == 0).any():
            found.eliminate_zeros()
        return found

    def blocks(
        self, cells: Indices | None = None
    ) -> Generator[tuple[Indices, csr_matrix], None, None]:
        """Read some cells some at a time, in the order in which they are on disk."""
        asked = np.arange(self.shape[0]) if cells is None else np.asarray(cells, dtype=np.int64)
        places = asked if self.cells is None else self.cells[asked]
        order = np.argsort(places, kind="stable")
        size = self.cells_at_a_time
        positions = (order[start : start + size] for start in range(0, max(len(order), 1), size))
        with closing(in_background((at, self.rows(asked[at])) for at in positions)) as found:
            yield from found

    def observations(
        self,
        steps: Iterable[Indices],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        dense: bool = True,
    ) -> Generator[Observation, None, None]:
        """Read the cells of coming steps in the background, those of several steps together."""
        with closing(in_background(map(self._read_window, self._windows(steps)))) as windows:
            for window in windows:
                for counts in window:
                    yield Observation.of(counts, device, dtype, dense=dense)

    def _windows(self, steps: Iterable[Indices]) -> Iterator[Sequence[Indices]]:
        """Group steps whose cells are read together."""
        window: list[Indices] = []
        n_cells = 0
        for cells in steps:
            if window and n_cells + len(cells) > self.cells_per_window:
                yield window
                window, n_cells = [], 0
            window.append(cells)
            n_cells += len(cells)
        if window:
            yield window

    def _read_window(self, steps: Sequence[Indices]) -> Iterator[csr_matrix]:
        """Read the cells of some steps now; return those of each step."""
        wanted, at = np.unique(np.concatenate(steps), return_inverse=True)
        rows = self.rows(wanted)
        stops = np.cumsum([len(cells) for cells in steps])[:-1]
        return (rows[some] for some in np.split(at.reshape(-1), stops))

    def totals(self, cells: Indices | None = None) -> NDArray[np.float64]:
        """Sum of the values of some cells (default: of all), kept until the files change."""
        n_cells = self.shape[0]
        key = self._key()
        known = _known_totals.get(key)
        if known is None and cells is not None and len(cells) < _MANY * n_cells:
            return row_sums(self.rows(cells))
        if known is None:
            known = np.empty(n_cells)
            for positions, counts in self.blocks():
                known[positions] = row_sums(counts)
            _known_totals.put(key, known)
        for part in self.parts:
            part.check_unchanged()
        return known.copy() if cells is None else known[cells]

    def _key(self) -> tuple[object, ...]:
        chosen = (self.cells, self.features)
        digests = (None if some is None else hash(some.tobytes()) for some in chosen)
        return (
            *(part.name for part in self.parts),
            *(part.opened for part in self.parts),
            *digests,
        )


@dataclass(frozen=True, eq=False)
class Chosen(Observed):
    """Some cells and features of observations, which are read when they are needed.

    Parameters
    ----------
    source
        The observations.
    cells
        Positions of the cells, in their order here.
    features
        Positions of the features; ``None``: all.
    """

    source: Observed
    cells: Indices
    features: Indices | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and of features."""
        n_features = self.source.shape[1] if self.features is None else len(self.features)
        return len(self.cells), n_features

    def rows(self, cells: Indices | None = None) -> Matrix:
        """Read the rows of some of these cells."""
        return self._of_features(self.source.rows(self._places(cells)))

    def blocks(self, cells: Indices | None = None) -> Iterator[tuple[Indices, Matrix]]:
        """Read them some at a time."""
        for positions, rows in self.source.blocks(self._places(cells)):
            yield positions, self._of_features(rows)

    def _places(self, cells: Indices | None) -> Indices:
        return self.cells if cells is None else self.cells[cells]

    def _of_features(self, rows: Matrix) -> Matrix:
        return rows if self.features is None else rows[:, self.features]


class _Kept:
    """The totals of the data sets that were asked for last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[object, NDArray[np.float64]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object) -> NDArray[np.float64] | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: object, totals: NDArray[np.float64]) -> None:
        with self._lock:
            self._kept[key] = totals
            while len(self._kept) > _N_KEPT:
                self._kept.popitem(last=False)


_known_totals = _Kept()
