"""Counts that stay on disk: of a backed AnnData, of zarr stores, of several files as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from scipy.sparse import csr_matrix

from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive.observed.on_disk import OnDisk
from pyro_contrastive.observed.source import Indices
from pyro_contrastive.observed.stored_rows import Signature, StoredRows

__all__ = ["StoredCounts", "counts_on_disk", "stored_rows"]

HOW_TO_WRITE = (
    "Write the counts by rows, adata.X = scipy.sparse.csr_matrix(adata.X); "
    'adata.write_h5ad("counts.h5ad"), once, where they fit in memory; or read them into memory '
    "here: adata = adata.to_memory()."
)


class StoredCounts(CSRDataset):  # type: ignore[misc]  # anndata has no types
    """A matrix on disk as ``X`` of an AnnData, made of one or several files.

    Parameters
    ----------
    source
        Its rows.
    """

    backend: Literal["zarr", "hdf5"] = "zarr"

    def __init__(self, source: OnDisk) -> None:
        self.source = source

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and of genes."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """The type of the values once they are read."""
        return np.dtype(np.float32)

    def __getitem__(self, index: Any) -> csr_matrix:
        """Read some cells, or some cells and genes, into memory."""
        cells, genes = index if isinstance(index, tuple) else (index, slice(None))
        n_cells, n_genes = self.shape
        rows = self.source.rows(np.atleast_1d(np.arange(n_cells)[_positions(cells)]))
        return rows[:, np.atleast_1d(np.arange(n_genes)[_positions(genes)])]

    def to_memory(self) -> csr_matrix:
        """Read the whole matrix into memory."""
        return self.source.rows()

    def copy(self) -> StoredCounts:
        """Return the same: what is on disk is only read."""
        return self


def _positions(index: Any) -> Any:
    """Return an index of one axis; AnnData gives those of two axes as a grid."""
    return index if isinstance(index, slice) else np.asarray(index).reshape(-1)


def counts_on_disk(adata: AnnData, layer: str | None) -> OnDisk | None:
    """Return the counts of an AnnData that are on disk; ``None`` if they are in memory.

    Parameters
    ----------
    adata
        The cells; a view of data on disk is not read.
    layer
        Name of the layer with the counts, which exists; ``None``: ``adata.X``.

    Raises
    ------
    ValueError
        If they are stored in a form in which rows cannot be read.
    InvalidFileError
        If they are damaged.
    """
    whole, cells, genes = _parent(adata)
    matrix = whole.X if layer is None else whole.layers[layer]
    if isinstance(matrix, StoredCounts):
        return matrix.source.of(cells, genes)
    if isinstance(matrix, CSRDataset):
        return OnDisk((stored_rows(matrix.group),)).of(cells, genes)
    if isinstance(matrix, CSCDataset):
        what = "stored by genes (CSC), so that every cell is spread over the whole file"
    elif isinstance(matrix, h5py.Dataset) or type(matrix).__module__.startswith("zarr."):
        what = "stored as a dense matrix"
    else:
        return None
    msg = f"The counts on disk are {what}; they have to be stored by cells (CSR). {HOW_TO_WRITE}"
    raise ValueError(msg)


def _parent(adata: AnnData) -> tuple[AnnData, Indices | None, Indices | None]:
    """Return the AnnData that a view is of, with the view's cells and genes; ``None``: all."""
    if not adata.is_view:
        return adata, None, None
    # The public interface of a view would read all of its cells.
    whole = adata._adata_ref
    chosen = []
    for index, size in ((adata._oidx, whole.n_obs), (adata._vidx, whole.n_vars)):
        positions = np.atleast_1d(np.arange(size)[index])
        chosen.append(None if np.array_equal(positions, np.arange(size)) else positions)
    return whole, chosen[0], chosen[1]


def stored_rows(group: Any) -> StoredRows:
    """Return a sparse matrix that AnnData wrote by rows, as a group of HDF5 or zarr.

    Raises
    ------
    InvalidFileError
        If it is incomplete or damaged.
    """
    file = group.file.filename if isinstance(group, h5py.Group) else _store_name(group)
    name = f"{file}, {group.name.strip('/')}"
    try:
        shape = tuple(int(n) for n in group.attrs["shape"])
        with _fast_decoding():
            indices, values = group["indices"], group["data"]
        _check_chunks(name, indices, values)
        return StoredRows(
            name=name,
            shape=(shape[0], shape[1]),
            indices=indices,
            values=values,
            offsets=np.asarray(group["indptr"][:], dtype=np.int64),
            signature=_hdf5_signature(file)
            if isinstance(group, h5py.Group)
            else _zarr_signature(group),
            values_per_chunk=_chunk(values),
        )
    except InvalidFileError:
        raise
    except Exception as error:  # a damaged file may raise any error
        msg = f"{name} cannot be read as a sparse matrix; it is damaged ({error})."
        raise InvalidFileError(msg) from error


@contextmanager
def _fast_decoding() -> Iterator[None]:
    """Let arrays of zarr that are opened inside be decoded by zarrs, if that is installed.

    Compiled code takes a third of the time of zarr's own, which adds a millisecond for every chunk.
    """
    if find_spec("zarrs") is None:
        yield
        return
    import zarr  # noqa: PLC0415  # slow, and not always there
    import zarrs  # noqa: F401, PLC0415  # registers itself

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        yield


def _chunk(array: Any) -> int:
    """Return how many values are read at least, whatever is asked for."""
    return int(array.chunks[0]) if array.chunks else 1


def _check_chunks(name: str, *arrays: Any) -> None:
    """Refuse arrays of which parts are missing: they would be read as zeros.

    Raises
    ------
    InvalidFileError
        If some are.
    """
    for array in arrays:
        if isinstance(array, h5py.Dataset):
            if not array.chunks:
                continue
            there, needed = array.id.get_num_chunks(), -(-array.shape[0] // array.chunks[0])
        else:
            there, needed = array.nchunks_initialized, array.nchunks
        if there < needed:
            msg = (
                f"{name}: {needed - there} of {needed} chunks of {array.name.split('/')[-1]!r} are "
                "missing. Copy or write the data again; its counts would be read as zeros."
            )
            raise InvalidFileError(msg)


def _hdf5_signature(file: str) -> Callable[[], Signature]:
    return lambda: (_stat(file),)


def _store_name(group: Any) -> str:
    root = getattr(group.store, "root", None)
    return str(group.store) if root is None else str(root)


def _zarr_signature(group: Any) -> Callable[[], Signature]:
    """Return the signature of a zarr store: that of the folders its chunks are in.

    Chunks are replaced by renaming, which changes their folder. Stores that are not a folder have
    none.
    """
    root = getattr(group.store, "root", None)
    if root is None:
        return tuple
    folder = Path(root) / group.path
    arrays = [folder / name for name in ("indices", "data")]
    files = [f for a in arrays for f in (a, a / "zarr.json", a / ".zarray", a / "c") if f.exists()]
    return lambda: tuple(_stat(file) for file in files)


def _stat(file: str | os.PathLike[str]) -> tuple[str, int, int]:
    found = os.stat(file)
    return str(file), found.st_size, found.st_mtime_ns
