"""Reading and writing files of cells; what is read was checked before, see `data.file_checks`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import anndata as ad
import h5py
from scipy import sparse

from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive._tools.tolerant_file import TolerantFile
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
        return _checked(ad.read_h5ad(path), path)


@contextmanager
def _damage_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in the error, of any kind, that reading a damaged file may raise."""
    try:
        yield
    except (InvalidFileError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise  # from the system: it is missing, or may not be read
        msg = f"{os.fspath(path)} is damaged, or not written by AnnData: {error}"
        raise InvalidFileError(msg) from error


def write_h5ad(
    adata: ad.AnnData,
    path: str | os.PathLike[str],
    *,
    as_dense: Sequence[str] = (),
    convert_strings_to_categoricals: bool = True,
    **options: Any,
) -> None:
    """Write an ``.h5ad`` file as ``AnnData.write_h5ad`` does, but let no full disk end the process.

    Columns of strings with missing values are included: anndata 0.12 reads them, as anndata 0.13
    writes all strings of pandas 3, but does not write them again unless it is allowed to.

    Parameters
    ----------
    adata
        The data.
    path
        The file.
    as_dense, convert_strings_to_categoricals, **options
        As in ``AnnData.write_h5ad``.

    Raises
    ------
    OSError
        If the file cannot be written to its end, for example because the disk is full.
    """
    if convert_strings_to_categoricals:
        adata.strings_to_categoricals()
        if adata.raw is not None:
            adata.strings_to_categoricals(adata.raw.var)
    allowed = nullcontext()
    if getattr(ad.settings, "allow_write_nullable_strings", None) is False:
        allowed = ad.settings.override(allow_write_nullable_strings=True)
    with allowed, TolerantFile(path) as target:
        _write_elements(_densified(adata, as_dense), target, options)
        target.raise_failure()  # in closing it


_PARTS = ("obsm", "varm", "obsp", "varp", "layers", "uns")


def _write_elements(adata: ad.AnnData, target: TolerantFile, options: Mapping[str, Any]) -> None:
    """Write the elements as AnnData does, until one cannot be written."""
    with h5py.File(target, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        elements = {} if adata.X is None else {"X": adata.X}
        elements |= {} if adata.raw is None else {"raw": adata.raw}
        elements |= {"obs": adata.obs, "var": adata.var}
        for name, value in elements.items():
            ad.io.write_elem(file, name, value, dataset_kwargs=options)
            target.raise_failure()
        for name in _PARTS:
            ad.io.write_elem(file, name, dict(getattr(adata, name)), dataset_kwargs=options)
            target.raise_failure()


def _densified(adata: ad.AnnData, names: Sequence[str]) -> ad.AnnData:
    """Return the data with these sparse matrices, ``"X"`` or ``"raw/X"``, as dense ones."""
    names = [names] if isinstance(names, str) else names
    if not names:
        return adata
    if unknown := set(names) - {"X", "raw/X", "raw.X"}:
        msg = f"as_dense can name 'X' and 'raw/X', not {sorted(unknown)}."
        raise ValueError(msg)
    changed = adata.copy()
    if "X" in names and sparse.issparse(changed.X):
        changed.X = changed.X.toarray()
    if {"raw/X", "raw.X"}.intersection(names) and changed.raw is not None:
        raw = changed.raw.to_adata()
        raw.X = raw.X.toarray() if sparse.issparse(raw.X) else raw.X
        changed.raw = raw
    return changed


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
        return _checked(ad.read_zarr(path), path)


_COMPRESSED = (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array)


def _checked(adata: ad.AnnData, path: str | os.PathLike[str]) -> ad.AnnData:
    """Refuse sparse matrices whose indices lie outside: scipy would read other memory by them."""
    parts: dict[str, Any] = {"X": adata.X, "raw.X": None if adata.raw is None else adata.raw.X}
    for name in ("layers", "obsm", "varm", "obsp", "varp"):
        parts |= {f"{name}[{key!r}]": value for key, value in getattr(adata, name).items()}
    for name, value in parts.items():
        if isinstance(value, _COMPRESSED):
            try:
                value.check_format(full_check=True)
            except ValueError as error:
                msg = f"{os.fspath(path)} is damaged: {name} is not a sparse matrix ({error})."
                raise InvalidFileError(msg) from error
    return adata
