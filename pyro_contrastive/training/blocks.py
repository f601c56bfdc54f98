"""Mini-batches of cells on disk, which are shuffled by blocks of neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from pyro_contrastive.observed.on_disk import OnDisk
from pyro_contrastive.training.splits import Indices, PairedBatches, Population, Split, Step

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
    cells, batch_size, rng, part, n_parts
        As for :class:`PairedBatches`.
    """

    def __init__(
        self,
        source: OnDisk,
        cells: Population,
        batch_size: int,
        rng: np.random.Generator,
        part: int = 0,
        n_parts: int = 1,
    ) -> None:
        super().__init__(cells, batch_size, rng, part, n_parts)
        self._source = source
        self._steps_per_window = max(source.cells_per_window // (2 * batch_size), 1)

    def _steps(self) -> Iterator[Step]:
        steps = super()._steps()
        while window := list(islice(steps, self._steps_per_window)):
            yield from self._mixed(window)

    def _shuffled(self, cells: Indices) -> Indices:
        if self._is_small(cells):
            return super()._shuffled(cells)
        return shuffled_blocks(cells, self._source, self._rng)

    def _is_small(self, cells: Indices) -> bool:
        return len(cells) <= self._source.cells_per_window // 2

    def _mixed(self, window: list[Step]) -> Iterator[Step]:
        """Shuffle the cells of several steps among these, those of each population apart.

        Each process gets neighbours, so that no block is read by several of them.
        """
        sides = []
        for side, population in enumerate((self._larger, self._smaller)):
            cells = np.concatenate([pair[side] for step in window for pair in step])
            sizes = [[len(step[i][side]) for step in window] for i in range(self._n_parts)]
            shares = np.split(cells, np.cumsum([sum(each) for each in sizes])[:-1])
            if not self._is_small(population):  # or they are shuffled already
                shares = [self._rng.permutation(share) for share in shares]
            sides.append(
                [
                    np.split(share, np.cumsum(each)[:-1])
                    for share, each in zip(shares, sizes, strict=True)
                ]
            )
        larger, smaller = sides
        for i in range(len(window)):
            yield [(larger[part][i], smaller[part][i]) for part in range(self._n_parts)]


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
