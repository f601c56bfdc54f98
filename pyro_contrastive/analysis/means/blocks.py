"""Sums of counts of one group of cells by sample and stratum, and who is compared with whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive.analysis.means.group_sums import GroupSums, group_sums
from pyro_contrastive.observed.matrix import Matrix
from pyro_contrastive.observed.source import Observed

__all__ = ["Blocks", "Compared", "blocks_of"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Compared:
    """Cells that are compared within strata.

    Parameters
    ----------
    sums
        Their sums, of strata that both sides have.
    blocks
        Which blocks the cells of the second side are in, ``[blocks]``.
    """

    sums: GroupSums
    blocks: NDArray[np.bool_]


@dataclass(frozen=True)
class Blocks:
    """The cells of a group, in blocks of one sample and one stratum.

    Parameters
    ----------
    sums
        Sums of each block, background cells first: ``[blocks, 2, ...]``.
    sample, stratum
        Codes of the sample and the stratum of each block, ``[blocks]``.
    cell_block
        Block of each cell, ``[cells]``.
    fewest
        A stratum is used if both sides have this many cells in it.
    """

    sums: GroupSums
    sample: Codes
    stratum: Codes
    cell_block: Codes
    fewest: int

    def n_treated(self, sample: int) -> int:
        """Return the number of treated cells of a sample."""
        return int(self.sums.n_cells[self.sample == sample, 1].sum())

    def with_itself(self, sample: int) -> Compared:
        """Treated cells of a sample with its own background cells."""
        return self._shared(self.sums, self.sample == sample)

    def with_all(self, sample: int) -> Compared:
        """Treated cells of a sample with the background cells of all samples."""
        return self._shared(_beside(self._background(), self.sums, 1), self.sample == sample)

    def background_with_all(self, sample: int) -> Compared:
        """Background cells of a sample with the background cells of all samples."""
        return self._shared(_beside(self._background(), self.sums, 0), self.sample == sample)

    def _shared(self, sums: GroupSums, chosen: NDArray[np.bool_]) -> Compared:
        used = chosen & sums.shared(self.fewest)
        return Compared(sums.of(np.flatnonzero(used)), used)

    def _background(self) -> GroupSums:
        """Add up the background cells of all samples in the stratum of each block."""
        same = (self.stratum[:, None] == self.stratum).astype(float)  # [blocks, blocks]
        added = {
            name: np.tensordot(same, value[:, 0], axes=1) for name, value in vars(self.sums).items()
        }
        added["n_cells"] = added["n_cells"].astype(np.int64)
        return GroupSums(**{name: value[:, None] for name, value in added.items()})


def blocks_of(
    x: Matrix | Observed,
    sizes: Array,
    sample: Codes,
    stratum: Codes,
    side: NDArray[np.bool_],
    fewest: int,
) -> Blocks:
    """Add up the counts of a group of cells by sample and stratum.

    Parameters
    ----------
    x
        Counts, ``[cells, genes]``.
    sizes
        Library size or size factor of each cell, positive, ``[cells]``.
    sample, stratum
        Codes, ``[cells]``.
    side
        Which cells are treated, ``[cells]``.
    fewest
        A stratum is used if both sides have this many cells in it.
    """
    both, cell_block = np.unique(np.stack([sample, stratum], 1), axis=0, return_inverse=True)
    cell_block = np.asarray(cell_block, dtype=np.int64).reshape(-1)
    sums = group_sums(x, sizes, cell_block, side)
    return Blocks(sums, both[:, 0], both[:, 1], cell_block, fewest)


def _beside(background: GroupSums, sums: GroupSums, side: int) -> GroupSums:
    """Return sums whose second side is one side of `sums`, and whose first is the background."""
    return GroupSums(
        *(
            np.concatenate([first, value[:, [side]]], axis=1)
            for first, value in zip(vars(background).values(), vars(sums).values(), strict=True)
        )
    )
