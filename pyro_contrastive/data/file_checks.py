"""Checks of files of cells: nothing outside them is read, and no code in them runs.

A file may come from anyone. HDF5 files can refer to others by external links, by datasets whose
numbers are in other files, and by virtual datasets made of other files; the author of a file could
thus have other files of the reader read. A Zarr store is a folder, in which symbolic links can do
the same, and whose metadata can ask for values to be unpickled, which runs code. AnnData writes
none of these. They are refused here, before the data are read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
from h5py import h5d, h5l, h5o

from pyro_contrastive._tools.invalid_file import InvalidFileError

_METADATA = {".zarray", ".zmetadata", "zarr.json"}
_CODECS = {
    *("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"),  # compression
    *("bitround", "delta", "fixedscaleoffset", "packbits", "quantize", "shuffle", "transpose"),
    *("adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3"),  # checks
    *("astype", "bytes", "categorize", "json2", "msgpack2", "sharding_indexed", "string"),
    *("vlen-array", "vlen-bytes", "vlen-utf8", "variable_length_utf8"),
}
"""Ways of storing numbers and strings that run no code from the file; not ``pickle``."""
_SMALL = 2**27
"""Bytes of memory that values may always take."""
_MOST_COMPRESSED = 5_000
"""How many times the bytes on the disk values may take in memory."""


def check_hdf5(path: str | os.PathLike[str]) -> None:
    """Refuse an HDF5 file in which anything refers to another file, without following it.

    Links within the file, and virtual datasets made of its own datasets, are fine.

    Raises
    ------
    InvalidFileError
        If anything does, or takes far more memory than the file has bytes; the error names the
        first element.
    FileNotFoundError, OSError
        If there is no such file, or it is not an HDF5 file.
    """
    with h5py.File(path, "r") as file:
        found = _outside_hdf5(file)
        circle = None if found is not None else _circle(file)
    if circle is not None:
        msg = f"{os.fspath(path)} is damaged: {circle!a} contains itself."
        raise InvalidFileError(msg)
    if found is not None:
        msg = (
            f"{os.fspath(path)}: {found}. A file is read only if it holds all its data itself. If "
            "you trust it, copy the data into one file, e.g. "
            'anndata.read_h5ad(path).write_h5ad("copy.h5ad").'
        )
        raise InvalidFileError(msg)


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


def _circle(file: h5py.File) -> str | None:
    """Return the name of a group that contains itself, by way of its links; ``None`` without any.

    A reader would follow it until Python's recursion limit, inside of a lock of h5py.
    """
    inside: dict[int, set[int]] = {}  # groups in a group, by address
    names: dict[int, str] = {}

    def look(name: str, item: object) -> None:
        del item
        group = file.get(name)
        if isinstance(group, h5py.Group):
            names[_address(group)] = name
            inside[_address(group)] = set(map(_address, _groups_in(group)))

    file.visititems_links(look)
    inside[_address(file)] = set(map(_address, _groups_in(file)))
    # Take away groups that contain no others, until there are none.
    while leaves := {address for address, held in inside.items() if not held & inside.keys()}:
        inside = {address: held for address, held in inside.items() if address not in leaves}
    return next((names.get(address, "/") for address in inside), None)


def _groups_in(group: h5py.Group) -> Iterator[h5py.Group]:
    for name in group:
        if isinstance(found := group.get(name), h5py.Group):
            yield found


def _address(group: h5py.Group) -> int:
    return int(h5o.get_info(group.id).addr)


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


def _is_inflated(size: int, stored: int) -> bool:
    """Tell whether values take so much more memory than they do on the disk that it is a mistake.

    Compression by a factor of a thousand is possible, for zeros.
    """
    return size > _SMALL and size > _MOST_COMPRESSED * stored


def _value(file: h5py.File, name: bytes) -> tuple[bytes, bytes]:
    value: tuple[bytes, bytes] = file.id.links.get_val(name)
    return value


def _outside_dataset(dataset: h5d.DatasetID) -> str | None:
    if dataset.get_offset() is not None:  # the values are in this file, in one piece, as is usual
        return None
    size = dataset.get_space().get_simple_extent_npoints() * dataset.get_type().get_size()
    if _is_inflated(size, dataset.get_storage_size()):
        return f"takes {size:,} bytes in memory, and {dataset.get_storage_size():,} in the file"
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
    InvalidFileError
        If one does, or has the name of metadata without being any, or speaks of far more values
        than the folder can hold; the error names the file.
    FileNotFoundError
        If there is no such folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        msg = f"There is no folder {folder}."
        raise FileNotFoundError(msg)
    descriptions, stored = [], 0
    for where, folders, files in os.walk(folder):  # does not enter folders by links
        for name in (*folders, *files):
            refuse_link_outside(Path(where) / name, folder)
        stored += sum((Path(where) / name).stat().st_size for name in files)
        descriptions += [Path(where) / name for name in _METADATA.intersection(files)]
    for description in descriptions:
        _check_metadata(description, stored)


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
        raise InvalidFileError(msg)


def _check_metadata(path: Path, stored: int) -> None:
    """Check one file of metadata in a folder that has so many bytes in all."""
    try:
        content = json.loads(path.read_bytes())
        named, size = set(_codecs(content)), max(_sizes(content), default=0)
    except (ValueError, RecursionError) as error:
        msg = f"{path} is damaged: {error}."
        raise InvalidFileError(msg) from error
    if _is_inflated(size, stored):
        msg = f"{path} is damaged: it speaks of {size:,} bytes, and there are {stored:,}."
        raise InvalidFileError(msg)
    unknown = sorted(named - _CODECS, key=repr)
    if unknown:
        msg = (
            f"{path} has values stored as {unknown[0]!a}, which is not among the ways that are "
            f"known to run no code: {', '.join(sorted(_CODECS))}. Write the data with AnnData's "
            "write_zarr, or as .h5ad, if you trust them."
        )
        raise InvalidFileError(msg)


def _sizes(value: Any) -> Iterator[int]:
    """Yield how many bytes the arrays take, at 8 for a number, that metadata speak of."""
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _sizes(item)
    shape = value.get("shape") if isinstance(value, dict) else None
    if isinstance(shape, list) and all(type(n) is int for n in shape):
        yield 8 * math.prod(shape)


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
