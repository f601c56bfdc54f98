"""Mean and spread of every gene, where the parameters of a likelihood may start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Vector = NDArray[np.float64]
LEAST, MOST = 0.05, 50.0
"""Bounds of an inverse dispersion: outside of them a few cells decide, and their noise."""


@dataclass(frozen=True)
class GeneMoments:
    """What is typical of every gene, each ``[genes]``.

    Parameters
    ----------
    mean, variance
        Over cells.
    share
        Sum of the counts of a gene, and half a count, over the sum of the library sizes: normalised
        expression that is the same in all cells.
    inverse_dispersion
        The theta with which a negative binomial of mean l x share (l the library size of the cell)
        would have the sum of squared deviations that the counts have; between 0.05 and 50.
    """

    mean: Vector
    variance: Vector
    share: Vector
    inverse_dispersion: Vector

    @classmethod
    def of(cls, parts: Iterable[tuple[csr_matrix, Vector]]) -> Self:
        """Find the moments of some cells, at least one.

        Parameters
        ----------
        parts
            Some of the cells at a time: data, ``[cells, genes]``, and library sizes, ``[cells]``.
        """
        n_cells, total, total_squares = 0, 0.0, 0.0
        sums, squares, products = (np.zeros(1) for _ in range(3))
        for some, library in parts:
            counts = some.astype(np.float64)
            sums = sums + np.asarray(counts.sum(axis=0)).ravel()
            squares = squares + np.asarray(counts.power(2).sum(axis=0)).ravel()
            products = products + counts.T @ library
            n_cells += counts.shape[0]
            total += float(library.sum())
            total_squares += float((library**2).sum())
        mean, n_genes = sums / n_cells, len(sums)
        share = (sums + 0.5) / max(total + 0.5 * n_genes, 1.0)
        # The sum of (x - l share)^2 should be that of l share + (l share)^2 / theta.
        expected = total_squares * share**2
        excess = squares - 2 * share * products + expected - total * share
        theta = np.divide(expected, excess, out=np.full(n_genes, MOST), where=excess > 0)
        return cls(
            mean=mean,
            variance=np.maximum(squares / n_cells - mean**2, 0.0),
            share=share,
            inverse_dispersion=theta.clip(LEAST, MOST),
        )
