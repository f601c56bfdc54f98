"""Mean, spread and share of every gene, from which the parameters of a likelihood may start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Vector = NDArray[np.float64]
SMALLEST_INVERSE_DISPERSION, LARGEST_INVERSE_DISPERSION = 0.05, 50.0
"""Bounds of the estimate, beyond which it is decided by the noise of a few cells."""


@dataclass(frozen=True)
class GeneSummary:
    """Estimates for every gene over some cells, each ``[genes]``.

    Parameters
    ----------
    mean, variance
        Mean and variance of the data.
    share
        The gene's count plus one half, divided by the sum of the library sizes: the normalised
        expression of a model in which it is the same in all cells.
    inverse_dispersion
        Moment estimate of theta: with it, a negative binomial of mean l x share (l the library size
        of the cell) has the observed sum of squared deviations. Between 0.05 and 50.
    """

    mean: Vector
    variance: Vector
    share: Vector
    inverse_dispersion: Vector

    @classmethod
    def of(cls, parts: Iterable[tuple[csr_matrix, Vector]]) -> Self:
        """Summarise some cells, at least one.

        Parameters
        ----------
        parts
            The cells in parts: data, ``[cells, genes]``, and library sizes, ``[cells]``. Only sums
            are kept from one part to the next, so that the data need not be in memory at once.
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
        # The half count keeps the logarithm finite for a gene without counts.
        share = (sums + 0.5) / max(total + 0.5 * n_genes, 1.0)
        # Solve sum (x - l share)^2 = sum l share + (l share)^2 / theta for theta.
        expected = total_squares * share**2
        excess = squares - 2 * share * products + expected - total * share
        # A gene that varies less than a Poisson's counts has no solution: take the bound.
        largest = np.full(n_genes, LARGEST_INVERSE_DISPERSION)
        theta = np.divide(expected, excess, out=largest, where=excess > 0)
        return cls(
            mean=mean,
            variance=np.maximum(squares / n_cells - mean**2, 0.0),
            share=share,
            inverse_dispersion=theta.clip(SMALLEST_INVERSE_DISPERSION, LARGEST_INVERSE_DISPERSION),
        )
