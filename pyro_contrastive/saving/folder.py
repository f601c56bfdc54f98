"""A model as a folder: weights as safetensors, everything else as JSON. Never pickle."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import anndata as ad
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pyro_contrastive._tools.atomic import current, is_being_written, tidy, whole_folder
from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive._tools.litter import is_litter
from pyro_contrastive.components.component import as_json_value, report_own_parts
from pyro_contrastive.data.files import read_h5ad, write_h5ad
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.saving.checksums import CHECKSUMS, check_file, sealed
from pyro_contrastive.saving.saved_config import (
    ADATA,
    CONFIG,
    FORMAT,
    WEIGHTS,
    check_files,
    incomplete,
    read_config,
)
from pyro_contrastive.saving.saved_model import SavedModel
from pyro_contrastive.saving.saved_posteriors import PREFIX as POSTERIORS
from pyro_contrastive.saving.saved_posteriors import SavedPosteriors
from pyro_contrastive.training.history import History
from pyro_contrastive.training.trained_cells import PREFIX as CELLS
from pyro_contrastive.training.trained_cells import TrainedCells

PACKAGES = (
    *("pyro-contrastive", "torch", "pyro-ppl", "anndata", "numpy"),
    *("scipy", "pandas", "lightning-fabric", "numba", "safetensors"),
)
"""Packages whose versions are saved."""
FIRST = "first."
"""Prefix of the weights that the model had before its first training."""
NOT_WEIGHTS = (CELLS, POSTERIORS, FIRST)
"""Prefixes of tensors that are saved with the weights."""
N_TRIES, WAIT = 10, 0.05
"""How often, and after how many seconds, a folder that is being replaced is read again."""
Read = TypeVar("Read")


def write_folder(
    folder: Path,
    saved: SavedModel,
    adata: ad.AnnData | None,
    anndata_write_kwargs: Mapping[str, Any] | None = None,
    *,
    overwrite: bool,
) -> None:
    """Write the folder beside its final place, and put it there in one step when it is complete.

    Raises
    ------
    FileExistsError
        If `folder` exists and `overwrite` is not set, or it holds anything but a saved model.
    TypeError
        If the settings cannot be written as JSON.
    ValueError
        If something in the data cannot be written; the error names it.
    """
    _check_free(folder, overwrite=overwrite)
    report_own_parts(saved.components)
    config = _config_of(saved)
    json.dumps(config, default=as_json_value)  # fails before anything is written
    with whole_folder(folder) as new:
        # safetensors' save_file would make a file that only its owner may read.
        (new / WEIGHTS).write_bytes(save(_tensors_of(saved)))
        others = {WEIGHTS: new / WEIGHTS}
        if adata is not None:
            options = {"compression": "gzip"} | dict(anndata_write_kwargs or {})
            _write_adata(adata, new / ADATA, options)
            others[ADATA] = new / ADATA
        plain = json.loads(json.dumps(config, default=as_json_value))
        text = json.dumps(sealed(plain, CONFIG, others), indent=1)
        (new / CONFIG).write_text(text, encoding="utf-8")


def _config_of(saved: SavedModel) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "versions": dict(versions()),
        "setup": json.loads(saved.setup.to_json()),
        "settings": saved.settings,
        "elbo": saved.elbo,
        "components": saved.components,
        "is_trained": saved.is_trained,
        "conditions": saved.conditions,
        "trained_on": None if saved.trained_cells is None else saved.trained_cells.digest,
        "history": saved.history.to_json(),
        "refined": None if saved.posteriors is None else saved.posteriors.entries,
        "training": list(saved.runs),
    }


def _tensors_of(saved: SavedModel) -> dict[str, Tensor]:
    """All tensors of a model by name; see :data:`NOT_WEIGHTS`."""
    # safetensors refuses tensors that share memory, such as those of one prior for z and s.
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in saved.weights.items()}
    for name, value in (saved.first_weights or {}).items():
        tensors[f"{FIRST}{name}"] = value.detach().cpu().clone().contiguous()
    if saved.trained_cells is not None:
        tensors |= saved.trained_cells.to_tensors()
    if saved.posteriors is not None:
        tensors |= saved.posteriors.to_tensors()
    return tensors


def _write_adata(adata: ad.AnnData, path: Path, options: Mapping[str, Any]) -> None:
    """Write the data; name the element that cannot be written."""
    try:
        write_h5ad(adata, path, **options)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # anndata, h5py and pandas raise many kinds
        notes = "\n".join(getattr(error, "__notes__", []))
        found = re.search(r"writing key (.+?) of <.*> to /(.*)", notes)  # of anndata
        if found is None:
            raise
        first, *others = [part for part in found[2].split("/") if part]
        where = "".join(f"[{part!r}]" for part in others)
        msg = (
            f"adata.{first}{where}[{found[1]}] cannot be written to an .h5ad file ({error}). "
            "Delete or convert it, or save the model without save_anndata=True."
        )
        raise ValueError(msg) from error


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # numba is an extra
            found[name] = version(name)
    return MappingProxyType(found)


def _check_free(folder: Path, *, overwrite: bool) -> None:
    if folder.resolve().parent.is_dir():
        tidy(folder.resolve())
    if not folder.exists():
        return
    if not overwrite:
        msg = f"{folder} is there already; save(..., overwrite=True) replaces it."
        raise FileExistsError(msg)
    names = {f.name for f in folder.iterdir()} if folder.is_dir() else {folder.name}
    others = sorted(n for n in names - {CONFIG, WEIGHTS, ADATA} if not is_litter(n))
    if others:
        msg = (
            f"{folder} holds more than a saved model ({', '.join(others[:3])}), which overwriting "
            "would delete. Give the model a folder of its own."
        )
        raise FileExistsError(msg)


def read_folder(folder: Path) -> tuple[SavedModel, ad.AnnData | None]:
    """Read what :func:`write_folder` wrote, all of it from the same save.

    Raises
    ------
    FileNotFoundError
        If a file is missing, naming it.
    InvalidFileError
        If a file is damaged, was changed, or was written by a later version with another format.
    """
    return _read_whole(folder, lambda path: (_read_model(path), _read_adata(path)))


def read_setup(folder: Path) -> Setup:
    """Read only how the data of a saved model were set up.

    Raises
    ------
    FileNotFoundError, InvalidFileError
        As :func:`read_folder`.
    """

    def read(path: Path) -> Setup:
        check_files(path, CONFIG)
        return _setup_of(read_config(path / CONFIG), path)

    return _read_whole(folder, read)


def _read_whole(folder: Path, read: Callable[[Path], Read]) -> Read:
    """Read a folder, and again if it was replaced meanwhile."""
    for _ in range(N_TRIES):
        path = current(folder)
        before = _identity(path)
        try:
            found = read(path)
        except (OSError, ValueError):
            if _identity(path) == before and not is_being_written(folder):
                raise
        else:
            if _identity(path) == before:
                return found
        time.sleep(WAIT)
    return read(folder)


def _identity(folder: Path) -> tuple[int, ...] | None:
    """Return numbers that differ between a folder and the one that takes its place."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _read_model(folder: Path) -> SavedModel:
    check_files(folder, CONFIG, WEIGHTS)
    config = read_config(folder / CONFIG)
    _check_sum(config, folder / WEIGHTS)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, RuntimeError, ValueError, OverflowError) as error:
        msg = f"{folder / WEIGHTS} is damaged: {error}."
        raise InvalidFileError(msg) from error
    first = {k.removeprefix(FIRST): v for k, v in tensors.items() if k.startswith(FIRST)}
    setup = _setup_of(config, folder)
    try:
        return SavedModel(
            setup=setup,
            settings=config["settings"],
            elbo=config["elbo"],
            components=config["components"],
            history=History.from_json(config["history"]),
            is_trained=config["is_trained"],
            conditions=config["conditions"],
            weights={k: v for k, v in tensors.items() if not k.startswith(NOT_WEIGHTS)},
            trained_cells=TrainedCells.from_tensors(tensors, config["trained_on"]),
            # Earlier versions did not write these entries.
            posteriors=SavedPosteriors.read(config.get("refined"), tensors),
            runs=tuple(config.get("training", ())),
            first_weights=first or None,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise incomplete(folder / CONFIG, error) from error


def _setup_of(config: Mapping[str, Any], folder: Path) -> Setup:
    try:
        return Setup.from_json(json.dumps(config["setup"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise incomplete(folder / CONFIG, error) from error


def _check_sum(config: Mapping[str, Any], path: Path) -> None:
    if CHECKSUMS in config:  # format 1 had none
        check_file(config, path)


def _read_adata(folder: Path) -> ad.AnnData | None:
    """Read the data saved with a model, if there are any."""
    if not os.path.lexists(folder / ADATA):
        return None
    check_files(folder, ADATA)
    _check_sum(read_config(folder / CONFIG), folder / ADATA)
    return read_h5ad(folder / ADATA)


def refuse_prefix(prefix: str | None) -> None:
    """Refuse a prefix of the file names: a model has a folder of its own.

    Raises
    ------
    ValueError
        If one is given.
    """
    if prefix is not None:
        msg = (
            f"prefix={prefix!r}: several models in one folder are not supported; use a folder each."
        )
        raise ValueError(msg)
