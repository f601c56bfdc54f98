"""Opening files of cells without reading their counts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive.data.disk import HOW_TO_WRITE, StoredCounts, stored_rows
from pyro_contrastive.data.file_checks import check_hdf5, check_zarr
from pyro_contrastive.observed.on_disk import OnDisk
from pyro_contrastive.observed.stored_rows import StoredRows

__all__ = ["open_on_disk"]

_SHOWN = 3


@dataclass(frozen=True)
class _Store:
    path: Path
    obs: pd.DataFrame
    var: pd.DataFrame
    counts: StoredRows


def open_on_disk(*paths: str | os.PathLike[str], layer: str | None = None) -> ad.AnnData:
    """Open files of cells whose counts stay on disk, several as one data set.

    The AnnData has the columns of ``obs`` and ``var`` in memory, and nothing else but the counts,
    which models read some cells at a time: :meth:`ContrastiveVI.setup_anndata
    <pyro_contrastive.ContrastiveVI.setup_anndata>` and all that follows works as with data in
    memory. Subsets, ``adata[cells]`` and ``adata[:, genes]``, stay on disk as long as they are
    views; ``.copy()`` and ``.to_memory()`` read them.

    Parameters
    ----------
    *paths
        Files ``.h5ad``, or folders that are zarr stores (of version 2 or 3, sharded or not), as
        AnnData writes them. The counts must be stored by cells (CSR).
    layer
        The layer with the counts. Default: ``X``. It becomes ``X``.

    Returns
    -------
    The cells of all files, one file after the other, with the columns that all of them have. If
    names of cells repeat between files, ``-0``, ``-1`` ... are appended to those of each file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    InvalidFileError
        If one is damaged, chunks of it are missing, or something in it refers to another file.
    KeyError
        If there is no such layer.
    ValueError
        If the files differ in their genes or in their order, or counts are not stored by cells.

    Examples
    --------
    >>> import tempfile
    >>> from pyro_contrastive import ContrastiveVI
    >>> from pyro_contrastive.data import load_kang, open_on_disk
    >>> file = f"{tempfile.mkdtemp()}/cells.h5ad"
    >>> load_kang()[::20].write_h5ad(file)
    >>> adata = open_on_disk(file)
    >>> ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    >>> model = ContrastiveVI(adata)
    """
    if not paths:
        msg = "open_on_disk needs at least one file."
        raise TypeError(msg)
    stores = [_opened(Path(path), layer) for path in paths]
    _check_genes(stores)
    first = stores[0]
    obs = first.obs if len(stores) == 1 else _joined(stores)
    source = OnDisk(tuple(store.counts for store in stores))
    return ad.AnnData(StoredCounts(source), obs=obs, var=first.var)


def _opened(path: Path, layer: str | None) -> _Store:
    """Open a file, which is checked before anything of it is read."""
    is_zarr = path.is_dir()
    if not path.exists():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    if is_zarr and find_spec("zarr") is None:  # an extra of anndata 0.11
        msg = f"{path} is a zarr store, which the zarr package reads: pip install zarr"
        raise ImportError(msg)
    with _damage_named(path):
        (check_zarr if is_zarr else check_hdf5)(path)
        root = _zarr_group(path) if is_zarr else h5py.File(path, "r")
        obs, var = (ad.io.read_elem(root[name]) for name in ("obs", "var"))
    counts = stored_rows(_matrix(root, path, layer))
    if counts.shape != (len(obs), len(var)):
        msg = (
            f"{path} is damaged: its counts are of {counts.shape[0]} cells and {counts.shape[1]} "
            f"genes, but obs has {len(obs)} cells and var {len(var)} genes."
        )
        raise InvalidFileError(msg)
    return _Store(path, obs, var, counts)


def _zarr_group(path: Path) -> Any:
    import zarr  # noqa: PLC0415  # an extra of anndata 0.11

    return zarr.open_group(path, mode="r")


def _matrix(root: Any, path: Path, layer: str | None) -> Any:
    """Return the group of a matrix that is stored by cells."""
    layers = sorted(root["layers"]) if "layers" in root else []
    if layer is not None and layer not in layers:
        msg = f"{path} has no layer {layer!r}; the layers are {layers}."
        raise KeyError(msg)
    if layer is None and "X" not in root:
        msg = f"{path} has no X; name the layer with the counts, layer=, one of {layers}."
        raise ValueError(msg)
    found = root["X"] if layer is None else root["layers"][layer]
    kind = found.attrs.get("encoding-type", "unknown")
    if kind != "csr_matrix":
        msg = (
            f"The counts in {path} are stored as {kind}; they have to be stored by cells "
            f"(csr_matrix). {HOW_TO_WRITE}"
        )
        raise ValueError(msg)
    return found


def _check_genes(stores: list[_Store]) -> None:
    first = stores[0]
    genes = first.var.index.astype(str)
    for store in stores[1:]:
        own = store.var.index.astype(str)
        if own.equals(genes):
            continue
        here, there = (own.difference(genes), genes.difference(own))
        if len(here) or len(there):
            what = (
                f"{len(here)} genes are only in the latter, e.g. {list(here[:_SHOWN])}, and "
                f"{len(there)} only in the former, e.g. {list(there[:_SHOWN])}"
            )
        else:
            what = "they have the same genes in another order"
        msg = (
            f"{first.path} and {store.path} cannot be read as one data set: {what}. Write them "
            "with the same genes in the same order: adata[:, genes].write_h5ad(...)."
        )
        raise ValueError(msg)


def _joined(stores: list[_Store]) -> pd.DataFrame:
    """Join the columns that all stores have; levels of categories are those of any of them."""
    shared = [c for c in stores[0].obs if all(c in store.obs for store in stores)]
    joined = pd.concat([_as_values(store.obs[shared]) for store in stores])
    levels: Mapping[Any, Any] = {
        column: pd.api.types.union_categoricals([store.obs[column] for store in stores]).categories
        for column in shared
        if all(isinstance(store.obs[column].dtype, pd.CategoricalDtype) for store in stores)
        and len({store.obs[column].dtype.categories.dtype for store in stores}) == 1
    }
    for column, values in levels.items():
        joined[column] = pd.Categorical(joined[column], categories=values)
    if not joined.index.is_unique and all(store.obs.index.is_unique for store in stores):
        part = np.repeat(np.arange(len(stores)), [len(store.obs) for store in stores])
        names = zip(joined.index.astype(str), part, strict=True)
        joined.index = pd.Index([f"{name}-{at}" for name, at in names])
    return joined


def _as_values(obs: pd.DataFrame) -> pd.DataFrame:
    """Turn categories, which pandas does not join unless they are the same, into their values."""
    kept = {
        column: values.astype(values.cat.categories.dtype)
        for column, values in obs.items()
        if isinstance(values.dtype, pd.CategoricalDtype)
    }
    return obs.assign(**{str(column): values for column, values in kept.items()})


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Name the file in the error, of any kind, that reading a damaged file may raise."""
    try:
        yield
    except (InvalidFileError, PermissionError, FileNotFoundError):
        raise
    except Exception as error:
        msg = f"{path} is damaged, or not written by AnnData: {error}"
        raise InvalidFileError(msg) from error
