"""Counts that were corrected or are expected values: numbers with fractions that can be rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

_LOOKED_AT = 1000
"""Cells that are looked at: it is advice, and data may be large."""
_LARGEST_LOG = 20.0
"""More than the logarithm, to base 2, of a whole library of a million counts."""
_LEAST_KEPT = 0.3
"""Share of a count that no correction takes away from all counts of a cell."""
_MOST = 0.5
_NEAR = 0.1
_ROUNDING = 2e-6
"""Relative error of numbers that were float32 before a transformation was undone."""
_INVERSES: tuple[tuple[Callable[[NDArray[Any]], NDArray[Any]], float], ...] = (
    (np.expm1, 30.0),
    (lambda x: np.exp2(x) - 1, 40.0),
    (lambda x: 10.0**x - 1, 15.0),
    (np.square, 1e4),
)
"""What undoes common transformations, each with the largest value that it is tried on."""


def look_like_corrected_counts(matrix: Any) -> bool:
    """Tell whether a matrix holds counts with fractions, rather than transformed or scaled ones.

    Such come from what takes away ambient RNA (SoupX, CellBender) and from what shares reads
    between genes (alevin, RSEM). Scaled to one total per cell, or logarithms of that, are not.

    Parameters
    ----------
    matrix
        ``[cells, genes]``, sparse or dense; the first 1,000 cells are looked at.
    """
    rows = sp.csr_matrix(matrix[:_LOOKED_AT], dtype=np.float64)
    rows.eliminate_zeros()
    values = rows.data
    if not values.size or values.min() < 0 or np.array_equal(np.rint(values), values):
        return False
    totals = np.asarray(rows.sum(axis=1)).ravel()
    totals = totals[totals > 0]
    if len(totals) > 1 and np.ptp(totals) <= 1e-3 * totals.mean():
        return False  # scaled to one total
    units = _units(rows)
    if units is not None:
        # Each cell is whole counts times a number. One that is not above 1 is a share that was
        # kept; one that is, in some cells, brings them to a common depth. A whole number is a
        # count: most are, and a few have fractions.
        kept = (units >= _LEAST_KEPT) & (units <= 1 + 1e-6)
        return bool(np.mean(kept | (np.rint(units) == units)) > 0.9)  # noqa: PLR2004
    for inverse, largest in _INVERSES:
        if values.max() <= largest:
            undone = rows.copy()
            undone.data = inverse(values)
            if _units(undone) is not None:
                return False
    near = np.abs(values - np.rint(values)) <= _NEAR
    return bool(values.max() > _LARGEST_LOG or (near & (values > _MOST)).mean() > _MOST)


def _units(rows: sp.csr_matrix) -> NDArray[np.float64] | None:
    """Return the smallest values of rows that are whole multiples of it, if most are; else none."""
    units, whole = [], []
    for start, stop in zip(rows.indptr[:-1], rows.indptr[1:], strict=True):
        values = rows.data[start:stop]
        if len(values) < 2 or np.ptp(values) <= 1e-3 * values.min():  # noqa: PLR2004
            continue  # a single value is a multiple of itself
        ratios = values / values.min()
        whole.append((np.abs(ratios - np.rint(ratios)) <= 0.01 + _ROUNDING * ratios).all())
        units += [values.min()] if whole[-1] else []
    return np.array(units) if units and np.mean(whole) > _MOST else None


def rounded_layer(adata: AnnData) -> str:
    """Name a layer for rounded counts that is not there yet."""
    return "rounded_counts" if "rounded" in adata.layers else "rounded"


def rounding(adata: AnnData, layer: str | None) -> str:
    """Write the Python that makes a layer of rounded counts."""
    source = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    matrix = adata.X if layer is None else adata.layers[layer]
    new = rounded_layer(adata)
    if not sp.issparse(matrix):
        return f'adata.layers["{new}"] = np.rint({source})'
    return (
        f"counts = {source}.copy(); counts.data = np.rint(counts.data); "
        f'adata.layers["{new}"] = counts'
    )


WHAT_ROUNDING_DOES = (
    "Rounding moves a value by one half at most; values below one half become 0, which matters "
    "for genes with hardly any counts. The counts before the correction will do as well; "
    "normalised values (CPM, TPM) must not be rounded, for they are no counts."
)
WHAT_THEY_ARE = (
    "These look like corrected or expected counts, as SoupX, CellBender, alevin or RSEM give them: "
    "numbers from 0 up with fractions, and not logarithms."
)
