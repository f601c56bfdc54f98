"""Reading and writing files of cells; what is read was checked before, see `data.file_checks`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import anndata as ad
import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive.data.disk import StoredCounts
from pyro_contrastive.data.file_checks import check_hdf5, check_zarr
from pyro_contrastive.observed.source import Observed

_CHUNK = 2**15
"""Values of a matrix that are compressed, and read, together."""


def read_h5ad(path: str | os.PathLike[str]) -> ad.AnnData:
    """Read an ``.h5ad`` file, which must hold all its data itself.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    InvalidFileError
        If something in it refers to another file, naming it; nothing outside has been read. If it
        is damaged, or not an AnnData.
    OSError
        If it cannot be opened.
    """
    with _damage_named(path):
        check_hdf5(path)
        return ad.read_h5ad(path)


@contextmanager
def _damage_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in the error, of any kind, that reading a damaged file may raise."""
    try:
        yield
    except InvalidFileError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise  # from the system: it is missing, or may not be read
        msg = f"{os.fspath(path)} is damaged, or not written by AnnData: {error}"
        raise InvalidFileError(msg) from error


def write_h5ad(adata: ad.AnnData, path: str | os.PathLike[str], **options: Any) -> None:
    """Write an ``.h5ad`` file, columns of strings with missing values included.

    anndata 0.12 reads such columns, as anndata 0.13 writes all strings of pandas 3, but does not
    write them again unless it is allowed to.

    Parameters
    ----------
    adata
        The data.
    path
        The file.
    **options
        For ``AnnData.write_h5ad``.
    """
    allowed = nullcontext()
    if getattr(ad.settings, "allow_write_nullable_strings", None) is False:
        allowed = ad.settings.override(allow_write_nullable_strings=True)
    counts = adata.X if is_on_disk(adata) else None
    with allowed:
        if counts is None:
            adata.write_h5ad(path, **options)
            return
        _without_counts(adata).write_h5ad(path, **options)
        with h5py.File(path, "a") as file:
            write_rows(file, counts.source, **options)


def is_on_disk(adata: ad.AnnData) -> bool:
    """Tell whether ``X`` stays on disk, as :func:`open_on_disk` leaves it."""
    return not adata.is_view and isinstance(adata.X, StoredCounts)


def _without_counts(adata: ad.AnnData) -> ad.AnnData:
    return ad.AnnData(obs=adata.obs, var=adata.var, obsm=dict(adata.obsm), uns=dict(adata.uns))


def write_rows(file: h5py.File, source: Observed, compression: str | None = None) -> None:
    """Write counts as ``X`` of an open ``.h5ad`` file, some cells at a time.

    Parameters
    ----------
    file
        The file, which has no ``X`` yet.
    source
        The counts, sparse.
    compression
        As in ``AnnData.write_h5ad``.
    """
    empty = csr_matrix(source.shape, dtype=np.float32)
    if "X" in file:  # None
        del file["X"]
    ad.io.write_elem(file, "X", empty)
    group = file["X"]
    for name, dtype in (("data", np.float32), ("indices", np.int32), ("indptr", np.int64)):
        del group[name]
        whole = {"maxshape": (None,), "chunks": (_CHUNK,), "compression": compression}
        group.create_dataset(name, shape=(0,), dtype=dtype, **whole)
    _append(group["indptr"], np.zeros(1))
    n_values = 0
    for _, some in source.blocks():
        rows = csr_matrix(some)
        _append(group["data"], rows.data)
        _append(group["indices"], rows.indices)
        _append(group["indptr"], rows.indptr[1:].astype(np.int64) + n_values)
        n_values += rows.nnz


def _append(array: h5py.Dataset, values: NDArray[Any]) -> None:
    n_before = array.shape[0]
    array.resize((n_before + len(values),))
    array[n_before:] = values


def read_zarr(path: str | os.PathLike[str]) -> ad.AnnData:
    """Read an AnnData from a Zarr folder, which must hold all its data itself.

    Parameters
    ----------
    path
        The folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    InvalidFileError
        If a symbolic link in it leads outside, or values are stored in a way that may run code;
        nothing of it has been read. If it is damaged, or not an AnnData.
    """
    with _damage_named(path):
        check_zarr(path)
        return ad.read_zarr(path)
