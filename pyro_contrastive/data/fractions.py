"""Corrected or expected counts: numbers with fractions, which can be rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

_LOOKED_AT = 1000
"""Number of cells examined: this only serves advice, and data may be large."""
_LARGEST_LOG = 20.0
"""More than the logarithm, to base 2, of a library of a million counts."""
_SMALLEST_SHARE_KEPT = 0.3
"""No correction reduces all counts of a cell to a smaller share than this."""
_HALF = 0.5
_CLOSE = 0.1
"""Distance from an integer within which a corrected count is close to it."""
_ROUNDING = 2e-6
"""Relative error of numbers that were float32 before a transformation was undone."""
_NOTHING = 1e-3
"""Values below this are zeros of a transformation that was undone."""
_ONE = 1.5
"""1 remains 1 in some transformations; larger integers do not, or seldom."""
_TELLING = 1e4
"""Below this, numbers that were float32 before are seen to be integers, or not."""
_INVERSES: tuple[tuple[Callable[[NDArray[Any]], NDArray[Any]], float], ...] = (
    (np.expm1, 30.0),
    (lambda x: np.exp2(x) - 1, 40.0),
    (lambda x: 10.0**x - 1, 15.0),
    (np.square, 1e4),
    (lambda x: np.square(x / 2) - 0.375, 1e4),  # Anscombe
    (lambda x: np.square((x - 1 / x) / 2), 1e4),  # Freeman and Tukey
)
"""Inverses of common transformations, each with the largest value it is tried on."""


def look_like_corrected_counts(matrix: Any) -> bool:
    """Tell whether a matrix holds counts with fractions, rather than transformed or scaled ones.

    They come from tools that remove ambient RNA (SoupX, CellBender) or share reads between genes
    (alevin, RSEM). Counts scaled to one total per cell, or their logarithms, do not qualify.

    Parameters
    ----------
    matrix
        ``[cells, genes]``, sparse or dense; the first 1,000 cells are examined.
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
        # The counts of each cell are integers times a unit. A unit of at most 1 is the share that
        # a correction kept; larger ones, in some cells, scale them to a common depth. An integer
        # is an ordinary count: in such a cell most are, and a few have fractions.
        kept = (units >= _SMALLEST_SHARE_KEPT) & (units <= 1 + 1e-6)
        return bool(np.mean(kept | (np.rint(units) == units)) > 0.9)  # noqa: PLR2004
    for inverse, largest in _INVERSES:
        if values.max() <= largest:
            undone = rows.copy()
            undone.data = inverse(values)
            undone.data[np.abs(undone.data) < _NOTHING] = 0.0  # as zeros become
            undone.eliminate_zeros()
            if _units(undone) is not None or (_hold_integers(undone) and not _hold_integers(rows)):
                return False
    is_close = np.abs(values - np.rint(values)) <= _CLOSE
    return bool(values.max() > _LARGEST_LOG or (is_close & (values > _HALF)).mean() > _HALF)


def _units(rows: sp.csr_matrix) -> NDArray[np.float64] | None:
    """Return the smallest value of each row of multiples of it; ``None`` unless most rows are."""
    units, whole = [], []
    for start, stop in zip(rows.indptr[:-1], rows.indptr[1:], strict=True):
        values = rows.data[start:stop]
        if len(values) < 2 or np.ptp(values) <= 1e-3 * values.min():  # noqa: PLR2004
            continue  # a single value is a multiple of itself
        ratios = values / values.min()
        whole.append((np.abs(ratios - np.rint(ratios)) <= 0.01 + _ROUNDING * ratios).all())
        units += [values.min()] if whole[-1] else []
    return np.array(units) if units and np.mean(whole) > _HALF else None


def _hold_integers(rows: sp.csr_matrix) -> bool:
    """Tell whether nearly all values are integers, of those small enough to tell.

    Counts of deeply sequenced cells are not multiples of the smallest count of their cell.
    """
    told = rows.data[(rows.data > _ONE) & (rows.data < _TELLING)]
    tolerance = 0.01 + _ROUNDING * told
    return len(told) > 1 and bool((np.abs(told - np.rint(told)) <= tolerance).mean() > _HALF)


def rounded_layer(adata: AnnData) -> str:
    """Return a name for a new layer of rounded counts."""
    return "rounded_counts" if "rounded" in adata.layers else "rounded"


def rounding(adata: AnnData, layer: str | None) -> str:
    """Return the Python code that makes a layer of rounded counts."""
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
    "for genes with hardly any counts. The counts before the correction are as suitable; "
    "normalised values (CPM, TPM) must not be rounded, because they are not counts."
)
WHAT_THEY_ARE = (
    "These look like corrected or expected counts, as SoupX, CellBender, alevin or RSEM give them: "
    "numbers from 0 up with fractions, and not logarithms."
)
