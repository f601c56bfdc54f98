"""Reading a count matrix out of an AnnData, and refusing what is not counts."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

Matrix: TypeAlias = sp.csr_matrix | NDArray[np.float32]


def read_counts(adata: AnnData, layer: str | None) -> Matrix:
    """Return the counts as CSR (if sparse) or dense float32, checked.

    Parameters
    ----------
    adata
        In memory.
    layer
        Name of the layer with the counts; ``None``: ``adata.X``.

    Raises
    ------
    KeyError
        If the layer does not exist; the error lists the layers there are.
    ValueError
        If there are no cells or genes, the data are on disk only, or a value is negative, not an
        integer or not finite: the error names the first such cell and gene.
    """
    check_in_memory(adata)
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if layer is not None and layer not in adata.layers:
        msg = f"{where} does not exist; the layers are {sorted(adata.layers)}."
        raise KeyError(msg)
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = f"{where} is empty; name the layer with the raw counts: {sorted(adata.layers)}."
        raise ValueError(msg)
    if sp.issparse(matrix):
        counts = sp.csr_matrix(matrix, dtype=np.float32)
        _check_values(counts.data, where, adata, counts)
        return counts
    dense = np.ascontiguousarray(matrix, dtype=np.float32)
    _check_values(dense, where, adata, dense)
    return dense


def check_in_memory(adata: AnnData) -> None:
    """Refuse an AnnData without cells or genes, or one that is only on disk.

    Raises
    ------
    ValueError
        In both cases.
    """
    if adata.isbacked:
        msg = (
            "The AnnData is backed by a file on disk; read it into memory first: "
            "adata = adata.to_memory()."
        )
        raise ValueError(msg)
    if 0 in adata.shape:
        msg = f"The AnnData has {adata.n_obs} cells and {adata.n_vars} genes: there is no data."
        raise ValueError(msg)


def row_sums(counts: Matrix) -> NDArray[np.float64]:
    """Total count of each cell, shape ``[cells]``."""
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


def _check_values(values: NDArray[np.float32], where: str, adata: AnnData, counts: Matrix) -> None:
    bad = ~(np.isfinite(values) & (values >= 0) & (values == np.floor(values)))
    if not bad.any():
        return
    first = int(np.flatnonzero(bad)[0])
    if not isinstance(counts, np.ndarray):
        row = int(np.searchsorted(counts.indptr, first, side="right")) - 1
        column = int(counts.indices[first])
    else:
        row, column = divmod(first, counts.shape[1])
    msg = (
        f"{where} must hold raw counts (integers from 0 up), but {int(bad.sum())} of its values "
        f"are not: the first is {values.ravel()[first]:g}, cell {adata.obs_names[row]!r}, gene "
        f"{adata.var_names[column]!r}. If these are normalised values, name the layer with the "
        'raw counts: setup_anndata(adata, layer="counts").'
    )
    raise ValueError(msg)
