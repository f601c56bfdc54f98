"""Reading files of cells safely: nothing outside them is read, and no code in them runs.

A file may come from anyone. HDF5 files can refer to others by external links, by datasets whose
numbers are in other files, and by virtual datasets made of other files; the author of a file could
thus have other files of the reader read. A Zarr store is a folder, in which symbolic links can do
the same, and whose metadata can ask for values to be unpickled, which runs code. AnnData writes
none of these. They are refused here, before the data are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
from h5py import h5d, h5l, h5o

_METADATA = {".zarray", ".zmetadata", "zarr.json"}
_CODECS = {
    *("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"),  # compression
    *("bitround", "delta", "fixedscaleoffset", "packbits", "quantize", "shuffle", "transpose"),
    *("adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3"),  # checks
    *("astype", "bytes", "categorize", "json2", "msgpack2", "sharding_indexed", "string"),
    *("vlen-array", "vlen-bytes", "vlen-utf8", "variable_length_utf8"),
}
"""Ways of storing numbers and strings that run no code from the file; not ``pickle``."""


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
    ValueError
        If something in it refers to another file, naming it; nothing outside has been read.
    OSError
        If it is not an HDF5 file.
    """
    check_hdf5(path)
    return ad.read_h5ad(path)


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
    ValueError
        If a symbolic link in it leads outside, or values are stored in a way that may run code;
        nothing of it has been read.
    """
    check_zarr(path)
    return ad.read_zarr(path)


def check_hdf5(path: str | os.PathLike[str]) -> None:
    """Refuse an HDF5 file in which anything refers to another file, without following it.

    Links within the file, and virtual datasets made of its own datasets, are fine.

    Raises
    ------
    ValueError
        If anything does; the error names the first element.
    FileNotFoundError, OSError
        If there is no such file, or it is not an HDF5 file.
    """
    with h5py.File(path, "r") as file:
        found = _outside_hdf5(file)
    if found is not None:
        msg = (
            f"{os.fspath(path)}: {found}. A file is read only if it holds all its data itself. If "
            "you trust it, copy the data into one file, e.g. "
            'anndata.read_h5ad(path).write_h5ad("copy.h5ad").'
        )
        raise ValueError(msg)


def _outside_hdf5(file: h5py.File) -> str | None:
    """Describe the first element of a file that refers to another; ``None`` without any."""
    found: list[str] = []

    def look(name: bytes, info: Any) -> bool | None:
        said = _outside_link(file, name, info.type)
        if said is not None:
            found.append(f"{name.decode(errors='backslashreplace')!a} {said}")
        return True if found else None  # True stops the visit

    # Visits every link once, and enters groups by hard links only: those of the file itself.
    file.id.links.visit(look, info=True)
    return found[0] if found else None


def _outside_link(file: h5py.File, name: bytes, kind: int) -> str | None:
    if kind == h5l.TYPE_SOFT:
        return None
    if kind == h5l.TYPE_EXTERNAL:
        other, inside = (part.decode(errors="backslashreplace") for part in _value(file, name))
        return f"is an external link, to {inside!a} in the file {other!a}"
    if kind != h5l.TYPE_HARD:
        return f"is a link of an unknown kind (number {kind}), which may lead anywhere"
    found = h5o.open(file.id, name)
    return _outside_dataset(found) if isinstance(found, h5d.DatasetID) else None


def _value(file: h5py.File, name: bytes) -> tuple[bytes, bytes]:
    value: tuple[bytes, bytes] = file.id.links.get_val(name)
    return value


def _outside_dataset(dataset: h5d.DatasetID) -> str | None:
    if dataset.get_offset() is not None:  # the values are in this file, in one piece, as is usual
        return None
    made = dataset.get_create_plist()
    if made.get_external_count():
        other = made.get_external(0)[0].decode(errors="backslashreplace")
        return f"keeps its values in another file, {other!a}"
    if made.get_layout() == h5d.VIRTUAL:
        for i in range(made.get_virtual_count()):
            other = made.get_virtual_filename(i)
            if other != ".":  # the file itself
                return f"is a virtual dataset, made of values in another file, {other!a}"
    return None


def check_zarr(path: str | os.PathLike[str]) -> None:
    """Refuse a Zarr folder that leads outside by symbolic links, or asks for code to be run.

    Raises
    ------
    ValueError
        If one does, or has the name of metadata without being any; the error names the file.
    FileNotFoundError
        If there is no such folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        msg = f"There is no folder {folder}."
        raise FileNotFoundError(msg)
    for where, folders, files in os.walk(folder):  # does not enter folders by links
        for name in (*folders, *files):
            refuse_link_outside(Path(where) / name, folder)
        for name in _METADATA.intersection(files):
            _check_codecs(Path(where) / name)


def refuse_link_outside(path: Path, folder: Path) -> None:
    """Refuse a file of a folder that is a symbolic link to something outside the folder.

    Raises
    ------
    ValueError
        If it is.
    """
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        msg = (
            f"{path} is a symbolic link to {path.resolve()}, outside {folder}. Only files in the "
            "folder itself are read. If you trust them, copy the folder with what its links lead "
            "to: cp -rL FOLDER COPY."
        )
        raise ValueError(msg)


def _check_codecs(path: Path) -> None:
    try:
        named = set(_codecs(json.loads(path.read_bytes())))
    except (ValueError, RecursionError) as error:
        msg = f"{path} is damaged: {error}."
        raise ValueError(msg) from error
    unknown = sorted(named - _CODECS, key=repr)
    if unknown:
        msg = (
            f"{path} has values stored as {unknown[0]!a}, which is not among the ways that are "
            f"known to run no code: {', '.join(sorted(_CODECS))}. Write the data with AnnData's "
            "write_zarr, or as .h5ad, if you trust them."
        )
        raise ValueError(msg)


def _codecs(value: Any) -> Iterator[str]:
    """Yield the names of the codecs in metadata of Zarr, of version 2 or 3, at any depth."""
    if isinstance(value, list):
        for item in value:
            yield from _codecs(item)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in {"filters", "compressor", "codecs", "index_codecs"}:
            for codec in item if isinstance(item, list) else [item]:
                yield from _name(codec)
        yield from _codecs(item)


def _name(codec: Any) -> Iterator[str]:
    """Yield the name of a codec, ``id`` in version 2 and ``name`` in version 3."""
    if isinstance(codec, dict):
        named = [codec[key] for key in ("id", "name") if key in codec]
        yield from (str(name).removeprefix("numcodecs.") for name in named)
    elif codec is not None:
        yield str(codec)
