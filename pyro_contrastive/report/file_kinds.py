"""Recognise a file or folder by its content, and say how to convert other kinds to .h5ad."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path

import h5py

__all__ = ["Kind", "NotAnnData", "kind_of"]

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZARR_FILES = (".zgroup", ".zattrs", ".zmetadata", "zarr.json")
_SAVE = '.write_h5ad("counts.h5ad")'


class Kind(Enum):
    """Kinds of data that can be read."""

    h5ad = ".h5ad file"
    zarr = "zarr store"
    tenx = "10x .h5 file"
    cellbender = "CellBender .h5 file"


class NotAnnData(ValueError):  # noqa: N818 -- says what it is
    """A file of a kind that cannot be read."""

    def __init__(self, path: Path, what: str, help_: str) -> None:
        super().__init__(f"{path} {what}, not an .h5ad file. {help_}")


def kind_of(path: Path) -> Kind:
    """Recognise a file or folder.

    Parameters
    ----------
    path
        The file or folder.

    Returns
    -------
    Kind
        The kind of data that it holds.

    Raises
    ------
    FileNotFoundError
        If it does not exist.
    NotAnnData
        If it is of a kind that cannot be read; says which, and how to convert it to ``.h5ad``.
    OSError
        If it is not readable.
    """
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise NotAnnData(path, "is a device or a pipe", "Give a file.")
    with path.open("rb") as file:
        start = file.read(4096)
    if h5py.is_hdf5(path):
        return _kind_of_hdf5(path)
    raise NotAnnData(path, *_other_file(path, start))


def _kind_of_folder(path: Path) -> Kind:
    names = set(os.listdir(path))
    if names.intersection(_ZARR_FILES):
        if {"obs", "var"} <= names:
            return Kind.zarr
        if "mod" in names:
            raise NotAnnData(path, "is a zarr store of MuData", _of_mudata(path, "read_zarr", []))
        what = f"is a zarr store without obs and var (available: {_some(names)})"
        help_ = "If it contains an AnnData, give that folder (in SpatialData: tables/NAME)."
        raise NotAnnData(path, what, help_)
    if any(name.startswith("matrix.mtx") for name in names):
        help_ = f'In Python: import scanpy; scanpy.read_10x_mtx("{path}"){_SAVE}.'
        raise NotAnnData(path, "is a folder with a 10x matrix (.mtx)", help_)
    if {"config.json", "model.safetensors"} <= names:
        raise NotAnnData(path, "is a saved model", "Give the file with the counts instead.")
    files = sorted(name for name in names if name.endswith((".h5ad", ".zarr")))
    help_ = (
        f"It contains: {_some(files)}."
        if files
        else "Give a file, or a folder that is a zarr store."
    )
    raise NotAnnData(path, "is a folder", help_)


def _kind_of_hdf5(path: Path) -> Kind:
    try:
        with h5py.File(path, "r") as file:
            return _kind_of_groups(path, file)
    except OSError as error:
        text = str(error)
        why, help_ = "is damaged or truncated", "copy or download it again"
        if "unable to lock" in text or "already open for write" in text:
            why, help_ = "is open for writing in another program", "close that program"
        raise ValueError(f"{path} {why}, and cannot be read ({text}); {help_}") from error


def _kind_of_groups(path: Path, file: h5py.File) -> Kind:
    names = set(file.keys())
    if "mod" in names:
        found = list(file["mod"]) if isinstance(file["mod"], h5py.Group) else []
        raise NotAnnData(path, "is MuData (.h5mu)", _of_mudata(path, "read_h5mu", found))
    if {"obs", "var"} <= names:
        return Kind.h5ad
    if {"row_attrs", "col_attrs"} <= names:
        help_ = f'In Python, with loompy: import anndata; anndata.io.read_loom("{path}"){_SAVE}.'
        raise NotAnnData(path, "is a loom file", help_)
    if {"assays", "meta.data"} <= names:
        help_ = f'In R: SeuratDisk::Convert("{path}", dest = "h5ad").'
        raise NotAnnData(path, "is an h5Seurat file", help_)
    if {"barcode_idx", "umi"} & names:
        help_ = "Take filtered_feature_bc_matrix.h5 of the same run."
        raise NotAnnData(path, "lists the molecules of a 10x run (molecule_info.h5)", help_)
    if names & {"droplet_latents", "global_latents"}:
        return Kind.cellbender
    if "matrix" in names or any(_is_tenx_2(file[name]) for name in names):
        return Kind.tenx
    what = f"is an HDF5 file without obs and var (available: {_some(names)})"
    raise NotAnnData(path, what, f"Read it in Python, and save its AnnData: adata{_SAVE}.")


def _is_tenx_2(item: object) -> bool:
    """Tell whether it is a genome in the format of Cell Ranger 2."""
    return isinstance(item, h5py.Group) and {"barcodes", "data", "indptr"} <= set(item.keys())


def _of_mudata(path: Path, reader: str, found: Sequence[str]) -> str:
    one = found[0] if found else "rna"
    there_are = f" (available: {_some(found)})" if found else ""
    return (
        f"Choose one of its modalities{there_are}, in Python: import mudata; "
        f'mudata.{reader}("{path}").mod["{one}"]{_SAVE}.'
    )


def _other_file(path: Path, start: bytes) -> tuple[str, str]:
    """Say what a file that is not HDF5 is, and how to convert it."""
    if not start:
        return "is empty", "Copy or download it again."
    if start.startswith(b"\x1f\x8b"):
        return _compressed(path, start)
    for magic, what, help_ in _MAGIC:
        if start.startswith(magic):
            return what, help_.format(path=path, save=_SAVE)
    if _is_text(start):
        comma = b"," in start.splitlines()[0]
        call = f'read_csv("{path}")' if comma else f'read_text("{path}")'
        return (
            "is a text file",
            "If it is a table with a row for each cell, in Python: import anndata; "
            f"anndata.io.{call}{_SAVE} (with .T before it if the rows are genes).",
        )
    return (
        "is of an unknown kind",
        "If it should be one, it is damaged or truncated: copy or download it again.",
    )


def _compressed(path: Path, start: bytes) -> tuple[str, str]:
    inside = b""
    with suppress(OSError, EOFError, zlib.error):
        inside = zlib.decompressobj(wbits=31).decompress(start, 1024)
    if inside.startswith(_HDF5):
        return "is compressed with gzip", f"Unpack it: gunzip {path}."
    if inside[:1] in (b"R", b"X", b"A") and inside[1:2] in (b"D", b"\n"):
        return _R
    what, help_ = _other_file(path, inside) if inside else ("is compressed with gzip", "Unpack it.")
    return what, help_


_R = (
    "is an R object (.rds or .RData)",
    "In R, for a Seurat or SingleCellExperiment object x: "
    'zellkonverter::writeH5AD(Seurat::as.SingleCellExperiment(x), "counts.h5ad").',
)
_MAGIC = (
    (
        b"%%MatrixMarket",
        "is a matrix in Matrix Market form (.mtx)",
        "In Python, from the folder with the names of cells and genes: import scanpy; "
        'scanpy.read_10x_mtx("FOLDER"){save}.',
    ),
    (b"RDX", *_R),
    (b"RDA", *_R),
    (b"X\n\x00", *_R),
    (b"A\n", *_R),
    (b"PK", "is a zip archive (of .zarr.zip, .npz or .xlsx)", "Unpack it, or read it in Python."),
    (b"BZh", "is compressed with bzip2", "Unpack it with bunzip2; .rds files are read in R."),
    (b"\xfd7zXZ", "is compressed with xz", "Unpack it with unxz; .rds files are read in R."),
    (b"PAR1", "is a parquet file", 'In Python: import pandas; pandas.read_parquet("{path}").'),
    (b"version https://git-lfs", "is a pointer of Git LFS", "Fetch the file itself: git lfs pull."),
    (b"<", "is a web page or XML", "Download the file itself."),
    (b"\x80", "is a pickle", "Unpickle it in Python, if you trust it, and save: adata{save}."),
)


def _is_text(start: bytes) -> bool:
    try:
        start[:-4].decode("utf-8")  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return b"\x00" not in start


def _some(names: Sequence[str] | set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "") or "nothing"  # noqa: PLR2004
