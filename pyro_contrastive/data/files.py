"""Reading and writing files of cells; what is read was checked before, see `data.file_checks`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import anndata as ad

from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive.data.file_checks import check_hdf5, check_zarr


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
    with allowed:
        adata.write_h5ad(path, **options)


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
