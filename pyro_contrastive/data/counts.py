"""Reading counts (or other data) from an AnnData, and checking them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from pyro_contrastive.data.places import layer_names, where_counts_are
from pyro_contrastive.observed.matrix import Matrix, stored_values
from pyro_contrastive.observed.source import Indices, Observed


def read_counts(adata: AnnData, layer: str | None, cells: Indices | None = None) -> Matrix:
    """Return the data as float32, in CSR form if they are sparse; all values are finite.

    Parameters
    ----------
    adata
        Data in memory.
    layer
        Name of the layer with the counts; ``None``: ``adata.X``.
    cells
        Which cells to read and check; default all.

    Raises
    ------
    KeyError
        If the layer does not exist; the error lists the existing ones.
    ValueError
        If there are no cells or genes, the data are only on disk, or a value is missing or
        infinite; the error names the first such cell and gene.
    """
    check_in_memory(adata)
    where = place(layer)
    matrix = _matrix(adata, layer, cells)
    _check_kind(matrix, where)
    counts: Matrix
    if sp.issparse(matrix):
        _check_sparse(matrix, where)
        counts = sp.csr_matrix(matrix, dtype=np.float32)
        if (counts.data == 0).any() or not counts.has_canonical_format:
            counts = counts.copy()  # it may share memory with the AnnData, which must not change
            counts.sum_duplicates()
            counts.eliminate_zeros()
    else:
        counts = np.ascontiguousarray(matrix, dtype=np.float32)
    bad = ~np.isfinite(stored_values(counts))
    if bad.any():
        names = cell_names(adata, cells)
        msg = (
            f"{where} must hold finite numbers, but {int(bad.sum())} of its values are missing or "
            f"infinite: the first is {first_of(bad, counts, names, adata.var_names)}."
        )
        raise ValueError(msg)
    return counts


def _matrix(adata: AnnData, layer: str | None, cells: Indices | None) -> Any:
    """Return the matrix in the format of the AnnData, or some of its rows."""
    where = place(layer)
    if layer is not None and layer not in layer_names(adata):
        msg = f"{where} does not exist; the layers are {sorted(layer_names(adata))}."
        raise KeyError(msg)
    if cells is not None and adata.is_view:  # whose matrix would be a copy of all rows
        return _matrix(adata[cells], layer, None)
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = f"{where} is empty. {where_counts_are(adata)}"
        raise ValueError(msg)
    if cells is None:
        return matrix
    if sp.issparse(matrix):
        _check_ends(matrix, where, cells)
    return matrix[cells]


def _check_sparse(matrix: Any, where: str) -> None:
    """Refuse a sparse matrix whose indices point outside it, since compiled code follows them.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    if matrix.format not in {"csr", "csc"}:
        return
    n_outer, n_inner = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
    _check_ends(matrix, where, np.arange(n_outer))
    used = matrix.indices[: matrix.indptr[-1]]
    if matrix.indptr[0] != 0 or (used.size and (used.min() < 0 or used.max() >= n_inner)):
        raise _damaged(matrix, where)


def _check_kind(matrix: Any, where: str) -> None:
    """Refuse matrices that are computed later, and arrays that would lose an axis, mask or part.

    Raises
    ------
    ValueError
        If it is not an array in memory of two axes, with numbers that are not masked.
    """
    if not isinstance(matrix, np.ndarray | pd.DataFrame) and not sp.issparse(matrix):
        package = type(matrix).__module__.partition(".")[0]
        how = f"{where} = {where}.compute()" if package == "dask" else "read it into memory"
        msg = f"{where} is a {type(matrix).__name__} of {package}, not an array in memory: {how}."
        raise ValueError(msg)
    if np.ndim(matrix) != 2 and not sp.issparse(matrix):  # noqa: PLR2004  # cells and genes
        msg = f"{where} has shape {np.shape(matrix)}; counts have two axes, cells and genes."
        raise ValueError(msg)
    kinds = {dtype.kind for dtype in getattr(matrix, "dtypes", [getattr(matrix, "dtype", None)])}
    if not kinds <= set("biuf"):
        msg = (
            f"{where} must hold numbers, not values of type {getattr(matrix, 'dtype', kinds)}. If "
            f"they are numbers kept as objects or text: {where} = {where}.astype('float32')."
        )
        raise ValueError(msg)
    if isinstance(matrix, np.ma.MaskedArray) and np.ma.is_masked(matrix):
        msg = (
            f"{where} is a masked array, and {int(np.ma.getmaskarray(matrix).sum())} of its values "
            "are masked. Replace them, as by .filled(0), or leave out these cells or genes."
        )
        raise ValueError(msg)


def _check_ends(matrix: Any, where: str, cells: Indices) -> None:
    """Refuse a sparse matrix with rows that begin or end outside it.

    If it is stored by columns, all columns are checked.
    """
    if matrix.format not in {"csr", "csc"}:
        return
    ends, n_outer = matrix.indptr, matrix.shape[0 if matrix.format == "csr" else 1]
    outer = cells if matrix.format == "csr" else np.arange(n_outer)
    if len(ends) != n_outer + 1:
        raise _damaged(matrix, where)
    starts, stops = ends[outer], ends[outer + 1]
    n_entries = min(len(matrix.indices), len(matrix.data))
    is_inside = (starts >= 0) & (starts <= stops) & (stops <= n_entries)
    if not is_inside.all():
        raise _damaged(matrix, where)


def _damaged(matrix: Any, where: str) -> ValueError:
    return ValueError(
        f"{where} is a damaged sparse matrix: its indices do not fit its shape "
        f"{tuple(matrix.shape)}. Read the data again from their source."
    )


def place(layer: str | None) -> str:
    """Name the place of the data, for messages."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def check_in_memory(adata: AnnData) -> None:
    """Refuse an AnnData without cells or genes, or backed by a file.

    Raises
    ------
    ValueError
        In either case.
    TypeError
        If it is not an AnnData.
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
    """Refuse anything but an AnnData, such as a table of counts.

    Raises
    ------
    TypeError
        With the call that makes an AnnData.
    """
    if not isinstance(adata, AnnData):
        msg = (
            f"An AnnData (cells by genes) is needed, not a {type(adata).__name__}: "
            "anndata.AnnData(counts, obs=cells), with counts a matrix or data frame and cells the "
            "data frame of their columns."
        )
        raise TypeError(msg)


def cell_names(adata: AnnData, cells: Indices | None) -> pd.Index:
    """Return the names of some cells; ``None``: of all."""
    return adata.obs_names if cells is None else adata.obs_names[cells]


def first_of(chosen: NDArray[np.bool_], counts: Matrix, cells: pd.Index, genes: pd.Index) -> str:
    """Describe the first of the chosen values: its value, its cell and its gene.

    Parameters
    ----------
    chosen
        Mask of the values, shape of :func:`stored_values`; at least one is chosen.
    counts
        The matrix.
    cells, genes
        Names of its cells and genes.
    """
    first = int(np.flatnonzero(chosen)[0])
    if isinstance(counts, np.ndarray):
        row, column = divmod(first, counts.shape[1])
    else:
        row = int(np.searchsorted(counts.indptr, first, side="right")) - 1
        column = int(counts.indices[first])
    value = stored_values(counts).ravel()[first]
    return f"{value:g}, cell {cells[row]!r}, gene {genes[column]!r}"


def not_counts(counts: Matrix) -> NDArray[np.bool_]:
    """Find the values that are not counts (integers from 0 up), shape of :func:`stored_values`."""
    values = stored_values(counts)
    return (values < 0) | (values != np.floor(values))


class AnnDataCounts(Observed):
    """Counts in an AnnData, read and checked row by row when they are needed.

    The cost of reading a few cells does not depend on the size of the data set. Every read is
    checked, so that changes made to the AnnData in place are checked too.

    Parameters
    ----------
    adata
        Data in memory, with the registered genes.
    layer
        Name of the layer with the counts; ``None``: ``adata.X``.
    """

    def __init__(self, adata: AnnData, layer: str | None) -> None:
        self._adata, self._layer = adata, layer
        self._last: tuple[Indices, Matrix] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and of genes."""
        n_cells, n_genes = self._adata.shape
        return n_cells, n_genes

    def rows(self, cells: Indices | None = None) -> Matrix:
        """Return the rows of some cells; errors as in :func:`read_counts`."""
        if cells is None:
            return read_counts(self._adata, self._layer)
        # The rows that were just checked are usually the ones needed next.
        if self._last is None or not np.array_equal(self._last[0], cells):
            self._last = cells, read_counts(self._adata, self._layer, cells)
        return self._last[1]
