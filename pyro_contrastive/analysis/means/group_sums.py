"""Sums of counts by stratum, side and donor: all that a test of means needs of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pyro_contrastive.observed.matrix import Matrix
from pyro_contrastive.observed.source import Observed, as_observed

__all__ = ["DonorSums", "GroupSums", "donor_sums", "group_sums"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class GroupSums:
    """Sums over the cells of each stratum, for each of two sides: the second is compared.

    Parameters
    ----------
    counts, squares, products
        Sums of counts, of their squares, and of counts times size, ``[strata, 2, genes]``.
    sizes, squared_sizes, n_cells
        Sums of the cells' sizes (their library sizes) and of their squares, and numbers of cells,
        ``[strata, 2]``.
    """

    counts: Array
    squares: Array
    products: Array
    sizes: Array
    squared_sizes: Array
    n_cells: NDArray[np.int64]

    def of(self, strata: Codes) -> GroupSums:
        """Return the sums of some strata."""
        return GroupSums(*(value[strata] for value in vars(self).values()))

    def shared(self, fewest: int) -> NDArray[np.bool_]:
        """Return which strata have at least this many cells on both sides, ``[strata]``."""
        return np.asarray((self.n_cells >= fewest).all(axis=1))


def group_sums(
    x: Matrix | Observed, sizes: Array, strata: NDArray[np.int64], side: NDArray[np.bool_]
) -> GroupSums:
    """Add up the counts of cells by stratum and side.

    Parameters
    ----------
    x
        Counts, ``[cells, genes]``.
    sizes
        Library size or size factor of each cell, positive, ``[cells]``.
    strata
        Stratum of each cell, from 0, ``[cells]``.
    side
        Which cells are on the second side, ``[cells]``.
    """
    n_strata = int(strata.max(initial=-1)) + 1
    group = 2 * strata + side
    sums: Any = _sums(x, sizes, group, 2 * n_strata)
    return GroupSums(*(value.reshape(n_strata, 2, *value.shape[1:]) for value in sums))


def _sums(
    x: Matrix | Observed, sizes: Array, group: Codes, n_groups: int
) -> tuple[Array, Array, Array, Array, Array, Codes]:
    """Add up, for each group: counts, squares, products, sizes, squared sizes and cells."""
    source = as_observed(x)
    counts, squares, products = (np.zeros((n_groups, source.shape[1])) for _ in range(3))
    for cells, rows in source.blocks():
        own, ones = group[cells], np.ones(len(cells))
        shape, at = (n_groups, len(cells)), np.arange(len(cells))
        member, by_size = (csr_matrix((v, (own, at)), shape=shape) for v in (ones, sizes[cells]))
        some = csr_matrix(rows, dtype=np.float64)
        counts += (member @ some).toarray()
        squares += (member @ some.multiply(some)).toarray()
        products += (by_size @ some).toarray()
    n_cells = np.bincount(group, minlength=n_groups)
    sums_of: Any = [np.bincount(group, v, minlength=n_groups) for v in (sizes, sizes**2)]
    return counts, squares, products, sums_of[0], sums_of[1], n_cells


@dataclass(frozen=True)
class DonorSums:
    """Sums over the cells of one donor, stratum and side each: a group, where there are cells.

    Parameters
    ----------
    donor, stratum, side
        Of each group, ``[groups]``; the second side (1) is the one whose change is asked for.
    counts, squares, products, sizes, squared_sizes, n_cells
        As in :class:`GroupSums`, ``[groups, genes]`` and ``[groups]``.
    """

    donor: Codes
    stratum: Codes
    side: Codes
    counts: Array
    squares: Array
    products: Array
    sizes: Array
    squared_sizes: Array
    n_cells: Codes

    def of(self, groups: NDArray[np.bool_]) -> DonorSums:
        """Return the sums of some groups."""
        return DonorSums(*(value[groups] for value in vars(self).values()))

    def shared(self, fewest: int) -> Codes:
        """Return the strata with at least this many cells on both sides."""
        by_stratum = _added(self.n_cells, 2 * self.stratum + self.side).reshape(-1, 2)
        return np.flatnonzero((by_stratum >= fewest).all(1))

    def comparable(self, fewest: int) -> DonorSums:
        """Leave out what cannot be compared, or hardly.

        Strata in which a side has fewer cells than this, and donors with fewer on a side, which
        loses them this side.
        """
        kept = np.ones(len(self.donor), dtype=bool)
        while True:
            n_cells = np.where(kept, self.n_cells, 0)
            by_stratum = _added(n_cells, 2 * self.stratum + self.side).reshape(-1, 2)
            by_donor = _added(n_cells, 2 * self.donor + self.side)
            shared = np.asarray((by_stratum >= fewest).all(axis=1))
            enough = shared[self.stratum]
            enough &= by_donor[2 * self.donor + self.side] >= fewest
            if (enough >= kept).all():
                return self.of(kept)
            kept &= enough


def donor_sums(
    x: Matrix | Observed, sizes: Array, strata: Codes, side: NDArray[np.bool_], donors: Codes
) -> DonorSums:
    """Add up the counts of cells by donor, stratum and side.

    Parameters
    ----------
    x, sizes, strata, side
        As in :func:`group_sums`.
    donors
        Donor of each cell, from 0, ``[cells]``.
    """
    keys = np.stack([donors, strata, side.astype(np.int64)])
    (donor, stratum, which), group = np.unique(keys, axis=1, return_inverse=True)
    group = group.reshape(-1)  # NumPy 2.0 gives it a second dimension
    return DonorSums(donor, stratum, which, *_sums(x, sizes, group, len(donor)))


def _added(values: Codes, code: Codes) -> Codes:
    """Add up whole numbers by code; as many as there are pairs of codes."""
    return np.bincount(code, values, minlength=2 * (int(code.max(initial=-1)) // 2 + 1)).astype(
        np.int64
    )
