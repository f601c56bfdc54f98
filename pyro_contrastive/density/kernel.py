"""The decoded density of `density.fused`, row by row, compiled by numba.

The formulas are those of `density.counts`, where they are explained, for single precision and one
inverse dispersion per gene. One cell's genes fit the core's own cache, where they stay from the
softmax to the gradient. The same operations on whole tensors would each wait for memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_contrastive.density.kernel_counts import (
    counts_of,
    put_counts,
    put_not_structural,
    tables,
)
from pyro_contrastive.density.kernel_functions import compiled, exp32, f4, largest, total
from pyro_contrastive.density.kernel_zeros import (
    inflate,
    log_of_product,
    put_large_zeros,
    take_out,
    zeros,
)

__all__ = ["compile_all", "count_rows", "tables"]


@compiled
def softmax(row: Any, floor: Any) -> None:
    """Turn logits into a point of the simplex, in place."""
    top = largest(row)
    for j in range(row.size):
        row[j] = exp32(row[j] - top)
    scale = f4(1) / total(row)
    for j in range(row.size):
        row[j] = row[j] * scale + floor


@compiled
def count_rows(
    counts: Any,
    rho: Any,
    logits: Any,
    library: Any,
    t: Any,
    table: Any,
    table_slope: Any,
    floor: Any,
    d_t: Any,
    log_prob: Any,
    by_library: Any,
) -> None:
    """Evaluate log-probabilities and slopes of some cells.

    Parameters
    ----------
    counts
        ``[cells, genes]``.
    rho
        Logits of the scale, overwritten by the slopes by them.
    logits
        Logits of a structural zero, overwritten by the slopes by them. No columns: no inflation.
    library, t
        ``[cells]`` and ``[genes]``.
    table, table_slope
        The result of :func:`tables`.
    floor
        Added to the softmax.
    d_t, log_prob, by_library
        To be filled with slopes by t, ``[cells, genes]``, values, and slopes by the logarithm of
        the library size, ``[cells]``.
    """
    n_cells, n_genes = counts.shape
    inflated = logits.shape[1] > 0
    m, value, slope = np.empty(n_genes, f4), np.empty(n_genes, f4), np.empty(n_genes, f4)
    p, products = np.empty(n_genes, f4), np.empty(n_genes, f4)
    found = np.empty(n_genes + 1, np.int64)
    # Neutral element of the zeros' terms: probabilities are multiplied, their logarithms added.
    nothing = f4(inflated)
    for i in range(n_cells):
        if not (math.isfinite(total(rho[i])) and math.isfinite(total(logits[i]))):
            rho[i], logits[i], d_t[i] = np.nan, np.nan, np.nan
            log_prob[i], by_library[i] = np.nan, np.nan
            continue
        softmax(rho[i], floor)
        for j in range(n_genes):
            m[j] = library[i] * rho[i, j]
        zeros(m, t, value, slope, d_t[i])
        if inflated:
            p[:] = logits[i]
            inflate(logits[i], value, slope, d_t[i])
        others = 0.0
        if take_out(m, nothing, value):
            others += put_large_zeros(counts[i], m, t, p, slope, d_t[i], logits[i])
        at = found[: counts_of(counts[i], found)]
        for k in range(at.size):
            value[at[k]] = nothing
        others += put_counts(at, counts[i], m, t, table, table_slope, slope, d_t[i])
        if inflated:
            others += put_not_structural(at, p, logits[i])
        others += log_of_product(value, products) if inflated else total(value)
        by_library[i] = total(slope)
        # If a slope is NaN, let the value be NaN too, so that training notices.
        log_prob[i] = others + 0 * by_library[i]
        for j in range(n_genes):
            rho[i, j] = slope[j] - rho[i, j] * by_library[i]


def compile_all() -> None:
    """Compile every function for the types it is called with, by evaluating one cell and gene."""

    def ones(*shape: int) -> Any:
        return np.ones(shape, f4)

    t = ones(1)
    cell = ones(1, 1), ones(1, 1), ones(1, 0), ones(1)
    count_rows(*cell, t, *tables(t), f4(0), ones(1, 1), ones(1), ones(1))
