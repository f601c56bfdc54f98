"""Mini-batches of cells on disk, which are shuffled by blocks of neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pyro_contrastive.observed.on_disk import OnDisk
from pyro_contrastive.training.splits import Indices, PairedBatches, Population, Split

__all__ = ["BlockBatches", "in_blocks"]


class BlockBatches(PairedBatches):
    """Training mini-batches as those of :class:`PairedBatches`, of cells on disk.

    Cells that are neighbours on disk are read together, because it would take long to find them one
    by one. Each population is cut into blocks of neighbours, which are put in random order; and
    the cells of several coming steps, from many blocks, are shuffled among each other. So cells in
    a mini-batch come from many places, but those of an epoch are not in an entirely random order.
    A population smaller than what is read at a time is shuffled as in memory.

    Parameters
    ----------
    source
        Where the cells are.
    cells, batch_size, rng
        As for :class:`PairedBatches`.
    """

    def __init__(
        self, source: OnDisk, cells: Population, batch_size: int, rng: np.random.Generator
    ) -> None:
        super().__init__(cells, batch_size, rng)
        self._source = source
        steps = source.cells_at_a_time // (2 * batch_size)
        self._steps_per_window = max(steps, 1)

    def epoch(self) -> Iterator[Indices]:
        """Yield the indices of the cells of each step."""
        window: list[Indices] = []
        for cells in super().epoch():
            window.append(cells)
            if len(window) == self._steps_per_window:
                yield from self._mixed(window)
                window = []
        yield from self._mixed(window)

    def _shuffled(self, cells: Indices) -> Indices:
        if self._is_small(cells):
            return super()._shuffled(cells)
        return shuffled_blocks(cells, self._source, self._rng)

    def _is_small(self, cells: Indices) -> bool:
        return len(cells) <= self._source.cells_at_a_time // 2

    def _mixed(self, window: list[Indices]) -> Iterator[Indices]:
        """Shuffle the cells of several steps among these, those of each population apart."""
        if not window:
            return
        # As many of both in each step, if there are as many.
        sizes = [max(len(cells) // 2, len(cells) - len(self._smaller)) for cells in window]
        parts = []
        for side, population in enumerate((self._larger, self._smaller)):
            own = [np.split(cells, [n])[side] for cells, n in zip(window, sizes, strict=True)]
            joined = np.concatenate(own)
            if not self._is_small(population):  # or they are shuffled already
                joined = self._rng.permutation(joined)
            parts.append(np.split(joined, np.cumsum([len(cells) for cells in own])[:-1]))
        for larger, smaller in zip(*parts, strict=True):
            yield np.concatenate([larger, smaller])


def shuffled_blocks(cells: Indices, source: OnDisk, rng: np.random.Generator) -> Indices:
    """Return cells in blocks of neighbours on disk, the blocks in random order."""
    size = source.cells_per_block
    ordered = source.in_order(cells)
    # The first block is shorter, by a random number of cells, so that other cells meet each time.
    first = int(rng.integers(1, size + 1))
    blocks = np.split(ordered, np.arange(first, len(ordered), size))
    return np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])


def in_blocks(split: Split, source: OnDisk) -> Split:
    """Return the same split, with held-out cells in an order in which they are soon read."""
    rng = np.random.default_rng(0)
    validation, test = (
        Population(
            shuffled_blocks(part.background, source, rng),
            shuffled_blocks(part.target, source, rng),
        )
        for part in (split.validation, split.test)
    )
    return Split(split.train, validation, test)
