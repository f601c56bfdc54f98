"""Sums of counts by stratum and side: all that a test of means needs of the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pyro_contrastive.observed.matrix import Matrix

__all__ = ["GroupSums", "group_sums", "why_not_tested"]

Array = NDArray[np.float64]


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

    def of(self, strata: NDArray[np.bool_]) -> GroupSums:
        """Return the sums of some strata."""
        return GroupSums(*(value[strata] for value in vars(self).values()))

    def shared(self, fewest: int) -> NDArray[np.bool_]:
        """Return which strata have at least this many cells on both sides, ``[strata]``."""
        return np.asarray((self.n_cells >= fewest).all(axis=1))


def group_sums(
    x: Matrix, sizes: Array, strata: NDArray[np.int64], side: NDArray[np.bool_]
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
    n_groups = 2 * n_strata
    member = csr_matrix(
        (np.ones(len(group)), (group, np.arange(len(group)))), shape=(n_groups, len(group))
    )
    x = csr_matrix(x, dtype=np.float64)
    by_size = csr_matrix((sizes, (group, np.arange(len(group)))), shape=member.shape)
    counts, squares, products = (
        (rows @ values).toarray().reshape(n_strata, 2, x.shape[1])
        for rows, values in ((member, x), (member, x.multiply(x)), (by_size, x))
    )
    return GroupSums(
        counts,
        squares,
        products,
        (member @ sizes).reshape(n_strata, 2),
        (member @ sizes**2).reshape(n_strata, 2),
        np.bincount(group, minlength=n_groups).reshape(n_strata, 2),
    )


def why_not_tested(n_counts: Array, fewest: int) -> NDArray[np.str_]:
    """Say why genes with these numbers of counts are not tested; empty if they are, ``[genes]``."""
    few = np.where(n_counts == 0, "no counts", f"fewer than {fewest} counts")
    return np.where(n_counts < fewest, few, "")
