"""A trial, before training, of writing the results that training will have."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from pyro_contrastive.data.files import write_h5ad
from pyro_contrastive.data.places import layer_names
from pyro_contrastive.report.failures import is_full_disk
from pyro_contrastive.report.folder import ResultsFolder
from pyro_contrastive.report.study import LATENTS, FittedModel, Study
from pyro_contrastive.report.unwritable import explain_unwritable, made_quietly, zeros

__all__ = ["check_results_can_be_written"]

_SAMPLE = 256  # cells whose counts are written, to estimate the space that all of them take
_PAGE_BYTES = 8_000_000  # figures and page, with some to spare
_BYTES_PER_LATENT = 12  # of a cell, at most, in either file: as a number or as text

Write = Callable[[ad.AnnData], int]


def check_results_can_be_written(
    model: FittedModel,
    adata: ad.AnnData,
    folder: ResultsFolder,
    study: Study,
    *,
    n_latents: int,
    refine: bool = False,
) -> None:
    """Write the untrained model and the data without most of the counts, and delete both.

    Parameters
    ----------
    model
        The model, not yet trained.
    adata
        Its cells.
    folder
        The folder for the results.
    study
        Names the file.
    n_latents
        Number of latents that will be written.
    refine
        Whether refined posteriors will be saved with the model. Default: ``False``.

    Raises
    ------
    ValueError
        If something in the data cannot be written to an ``.h5ad`` file and read back; the message
        names it and says how to fix it.
    OSError
        If the disk does not have enough space for the results.
    """
    path = folder.new / f"{study.name}.h5ad"

    def write(data: ad.AnnData) -> int:
        return _write_and_read(data, path)

    _check_room(folder, _PAGE_BYTES)  # HDF5 may crash where a disk is full
    try:
        model.save(str(folder.new / "model"), overwrite=True)
        # The trained model is saved with the weights it began with.
        size = 2 * sum(file.stat().st_size for file in folder.new.rglob("*") if file.is_file())
        rows = np.unique(np.linspace(0, adata.n_obs - 1, _SAMPLE).astype(int))
        latents = _BYTES_PER_LATENT * adata.n_obs * n_latents
        folder.data_bytes = _size_of(adata, rows, write) + latents
        size += folder.data_bytes + latents + _PAGE_BYTES
        # Mean and lower triangle of the covariance's factor, in single precision.
        size += adata.n_obs * 2 * n_latents * (n_latents + 3) if refine else 0
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise OSError(f"no space is left on the disk of folder {folder.given}") from error
    finally:
        shutil.rmtree(folder.new, ignore_errors=True)
        folder.renew()
    _check_room(folder, size)


def _check_room(folder: ResultsFolder, size: int) -> None:
    free = folder.free_bytes()
    if free < size:
        raise OSError(
            f"the results need about {_in_units(size)}, but only {_in_units(free)} are free on the "
            f"disk of folder {folder.given}; free some space, or choose a folder on another disk. "
            "(The files of an earlier run are deleted only once the new results are complete.)"
        )


def _size_of(adata: ad.AnnData, rows: np.ndarray, write: Write) -> int:
    """Write the data without counts, and the counts of some cells; return the size of it all."""
    try:
        with_names = write(_without_counts(adata))
        some = write(_counts_only(adata, rows))
        none = write(_counts_only(adata, rows[:0]))
    except Exception as error:
        if is_full_disk(error) or isinstance(error, MemoryError):
            raise
        raise ValueError(explain_unwritable(adata, rows, write, error)) from error
    return with_names + max(some - none, 0) * adata.n_obs // len(rows)


def _write_and_read(data: ad.AnnData, path: Path) -> int:
    """Write data as the results are written, and check that reading gives the same names."""
    path.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are shown when the results are written
        write_h5ad(data, path, compression="gzip")
        read = ad.read_h5ad(path)
    found = _names(read)
    for part, names in _names(data).items():
        if found[part] != names:
            raise ValueError(f"{part} has other names when it is read back")
    return path.stat().st_size


def _names(data: ad.AnnData) -> dict[str, Any]:
    names: dict[str, Any] = {"obs": list(data.obs), "var": list(data.var)}
    names |= {part: sorted(getattr(data, part)) for part in _MAPPINGS}
    names["layers"] = sorted(layer_names(data))
    names["uns"] = _keys(data.uns)
    if data.raw is not None:
        names |= {"raw.var": list(data.raw.var), "raw.varm": sorted(data.raw.varm)}
    return names


def _keys(value: Any) -> Any:
    """Keys of nested mappings, without those of None values, which older versions do not write."""
    if not isinstance(value, Mapping):
        return None
    return {key: _keys(inner) for key, inner in value.items() if inner is not None}


_MAPPINGS = ("obsm", "varm", "obsp", "varp")


def _without_counts(adata: ad.AnnData) -> ad.AnnData:
    """Copy the data with zeros in place of counts and latents."""
    parts = {name: dict(getattr(adata, name)) for name in _MAPPINGS}
    parts["obsm"] |= {f"X_{kind}": np.zeros((adata.n_obs, 1)) for kind in LATENTS}
    data = made_quietly(
        obs=adata.obs.copy(),
        var=adata.var.copy(),
        uns=dict(adata.uns),
        layers=dict.fromkeys(layer_names(adata), zeros(*adata.shape)),
        **parts,
    )
    if adata.raw is not None:
        raw = adata.raw
        data.raw = made_quietly(
            zeros(adata.n_obs, raw.n_vars),
            obs=pd.DataFrame(index=adata.obs_names),
            var=raw.var.copy(),
            varm=dict(raw.varm),
        )
    return data


def _counts_only(adata: ad.AnnData, rows: np.ndarray) -> ad.AnnData:
    """X, layers and raw of some cells, with names only."""
    obs = pd.DataFrame(index=adata.obs_names[rows])
    layers = {name: adata.layers[name][rows] for name in layer_names(adata)}
    x = None if adata.X is None else adata.X[rows]
    data = made_quietly(x, obs=obs, var=pd.DataFrame(index=adata.var_names), layers=layers)
    if adata.raw is not None:
        var = pd.DataFrame(index=adata.raw.var_names)
        data.raw = made_quietly(adata.raw.X[rows], obs=obs, var=var)
    return data


def _in_units(n_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1000:.0f} kB"
