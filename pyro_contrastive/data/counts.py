"""Reading a matrix of counts (or other data) out of an AnnData, and checks of what it holds."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from pyro_contrastive.data.places import layer_names, where_counts_are

Matrix: TypeAlias = sp.csr_matrix | NDArray[np.float32]


def read_counts(adata: AnnData, layer: str | None) -> Matrix:
    """Return the data as CSR (if sparse) or dense float32; all of them are finite.

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
        If there are no cells or genes, the data are on disk only, or a value is missing or
        infinite: the error names the first such cell and gene.
    """
    check_in_memory(adata)
    where = place(layer)
    if layer is not None and layer not in layer_names(adata):
        msg = f"{where} does not exist; the layers are {sorted(layer_names(adata))}."
        raise KeyError(msg)
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = f"{where} is empty. {where_counts_are(adata)}"
        raise ValueError(msg)
    counts: Matrix
    if sp.issparse(matrix):
        _check_sparse(matrix, where)
        counts = sp.csr_matrix(matrix, dtype=np.float32)
        if (counts.data == 0).any() or not counts.has_canonical_format:
            counts = counts.copy()  # the values may be the AnnData's own
            counts.sum_duplicates()
            counts.eliminate_zeros()
    else:
        counts = np.ascontiguousarray(matrix, dtype=np.float32)
    bad = ~np.isfinite(stored_values(counts))
    if bad.any():
        msg = (
            f"{where} must hold finite numbers, but {int(bad.sum())} of its values are missing or "
            f"infinite: the first is {first_of(bad, counts, adata)}."
        )
        raise ValueError(msg)
    return counts


def _check_sparse(matrix: Any, where: str) -> None:
    """Refuse a sparse matrix whose indices lead outside it: compiled code would follow them.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    if matrix.format not in {"csr", "csc"}:
        return
    ends, n_inner = matrix.indptr, matrix.shape[1 if matrix.format == "csr" else 0]
    is_whole = (
        len(ends) == matrix.shape[0 if matrix.format == "csr" else 1] + 1
        and ends[0] == 0
        and ends[-1] <= min(len(matrix.indices), len(matrix.data))
        and bool((np.diff(ends) >= 0).all())
    )
    used = matrix.indices[: ends[-1]]
    if is_whole and (not used.size or (used.min() >= 0 and used.max() < n_inner)):
        return
    msg = (
        f"{where} is a damaged sparse matrix: its indices do not fit its shape "
        f"{tuple(matrix.shape)}. Read the data again from where they come from."
    )
    raise ValueError(msg)


def place(layer: str | None) -> str:
    """Say where the data are, for messages."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def check_in_memory(adata: AnnData) -> None:
    """Refuse an AnnData without cells or genes, or one that is only on disk.

    Raises
    ------
    ValueError
        In both cases.
    TypeError
        If it is no AnnData.
    """
    check_anndata(adata)
    if adata.isbacked:
        msg = (
            "The AnnData is backed by a file on disk; read it into memory first: "
            "adata = adata.to_memory()."
        )
        raise ValueError(msg)
    if 0 in adata.shape:
        msg = f"The AnnData has {adata.n_obs} cells and {adata.n_vars} genes: there is no data."
        raise ValueError(msg)


def check_anndata(adata: object) -> None:
    """Refuse what is no AnnData, such as a table of counts.

    Raises
    ------
    TypeError
        Then; it says how to make one.
    """
    if not isinstance(adata, AnnData):
        msg = (
            f"An AnnData (cells by genes) is needed, not a {type(adata).__name__}: "
            "anndata.AnnData(counts, obs=cells), with counts a matrix or data frame and cells the "
            "data frame of their columns."
        )
        raise TypeError(msg)


def row_sums(counts: Matrix) -> NDArray[np.float64]:
    """Total count of each cell, shape ``[cells]``."""
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


def stored_values(counts: Matrix) -> NDArray[np.float32]:
    """Return the values of a dense matrix, ``[cells, genes]``, or the stored ones of a sparse."""
    return counts if isinstance(counts, np.ndarray) else counts.data


def first_of(chosen: NDArray[np.bool_], counts: Matrix, adata: AnnData) -> str:
    """Describe the first of the chosen values: its value, its cell and its gene.

    Parameters
    ----------
    chosen
        Which ones, shape of :func:`stored_values`; at least one.
    counts, adata
        The matrix, and the names of its cells and genes.
    """
    first = int(np.flatnonzero(chosen)[0])
    if isinstance(counts, np.ndarray):
        row, column = divmod(first, counts.shape[1])
    else:
        row = int(np.searchsorted(counts.indptr, first, side="right")) - 1
        column = int(counts.indices[first])
    value = stored_values(counts).ravel()[first]
    return f"{value:g}, cell {adata.obs_names[row]!r}, gene {adata.var_names[column]!r}"


def not_counts(counts: Matrix) -> NDArray[np.bool_]:
    """Say which values are no counts (integers from 0 up), shape of :func:`stored_values`."""
    values = stored_values(counts)
    return (values < 0) | (values != np.floor(values))
