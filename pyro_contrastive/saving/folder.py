"""A model as a folder: weights as safetensors, everything else as JSON. Never pickle."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from pyro_contrastive._tools.litter import is_litter
from pyro_contrastive.components.component import as_json_value, report_own_parts
from pyro_contrastive.data.files import read_h5ad, write_h5ad
from pyro_contrastive.data.setup import Setup
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

PACKAGES = ("pyro-contrastive", "torch", "pyro-ppl", "anndata", "numpy")
"""Packages whose versions are saved."""
NOT_WEIGHTS = (CELLS, POSTERIORS)
"""Prefixes of tensors that are saved with the weights."""


def write_folder(
    folder: Path,
    saved: SavedModel,
    adata: ad.AnnData | None,
    anndata_write_kwargs: Mapping[str, Any] | None = None,
    *,
    overwrite: bool,
) -> None:
    """Write the folder next to its final place, and move it there when it is complete.

    Raises
    ------
    FileExistsError
        If `folder` exists and `overwrite` is not set, or it holds anything but a saved model.
    TypeError
        If the settings cannot be written as JSON.
    """
    _check_free(folder, overwrite=overwrite)
    report_own_parts(saved.components)
    config = {
        "format": FORMAT,
        "versions": {name: version(name) for name in PACKAGES},
        "setup": json.loads(saved.setup.to_json()),
        "settings": saved.settings,
        "elbo": saved.elbo,
        "components": saved.components,
        "is_trained": saved.is_trained,
        "conditions": saved.conditions,
        "trained_on": None if saved.trained_cells is None else saved.trained_cells.digest,
        "history": saved.history.to_json(),
        "refined": None if saved.posteriors is None else saved.posteriors.entries,
    }
    text = json.dumps(config, indent=1, default=as_json_value)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        (new / CONFIG).write_text(text, encoding="utf-8")
        # safetensors refuses tensors that share memory, such as those of one prior for z and s.
        weights = {k: v.detach().cpu().clone().contiguous() for k, v in saved.weights.items()}
        if saved.trained_cells is not None:
            weights |= saved.trained_cells.to_tensors()
        if saved.posteriors is not None:
            weights |= saved.posteriors.to_tensors()
        # safetensors' save_file would make a file that only its owner may read.
        (new / WEIGHTS).write_bytes(save(weights))
        if adata is not None:
            options = {"compression": "gzip"} | dict(anndata_write_kwargs or {})
            write_h5ad(adata, new / ADATA, **options)
        _move(new, folder, old=Path(temporary) / "old")


def _check_free(folder: Path, *, overwrite: bool) -> None:
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


def _move(new: Path, folder: Path, old: Path) -> None:
    """Put `new` in the place of `folder`, which stays as it was if that fails."""
    if not folder.exists():
        os.replace(new, folder)
        return
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except BaseException:
        os.replace(old, folder)
        raise


def read_folder(folder: Path) -> tuple[SavedModel, ad.AnnData | None]:
    """Read what :func:`write_folder` wrote.

    Raises
    ------
    FileNotFoundError
        If a file is missing, naming it.
    ValueError
        If a file is damaged, or was written by a later version with another format.
    """
    check_files(folder, CONFIG, WEIGHTS)
    config = read_config(folder / CONFIG)
    try:
        tensors = load_file(folder / WEIGHTS)
        saved = SavedModel(
            setup=Setup.from_json(json.dumps(config["setup"])),
            settings=config["settings"],
            elbo=config["elbo"],
            components=config["components"],
            history=History.from_json(config["history"]),
            is_trained=config["is_trained"],
            conditions=config["conditions"],
            weights={k: v for k, v in tensors.items() if not k.startswith(NOT_WEIGHTS)},
            trained_cells=TrainedCells.from_tensors(tensors, config["trained_on"]),
            # Earlier versions did not write this entry.
            posteriors=SavedPosteriors.read(config.get("refined"), tensors),
        )
    except SafetensorError as error:
        msg = f"{folder / WEIGHTS} is damaged: {error}."
        raise ValueError(msg) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise incomplete(folder / CONFIG, error) from error
    return saved, _read_adata(folder)


def _read_adata(folder: Path) -> ad.AnnData | None:
    """Read the data saved with a model, if there are any."""
    if not os.path.lexists(folder / ADATA):
        return None
    check_files(folder, ADATA)
    try:
        return read_h5ad(folder / ADATA)
    except Exception as error:  # a damaged file may cause any exception
        msg = f"{folder / ADATA} is damaged, or not written by AnnData: {error}"
        raise ValueError(msg) from error


def read_setup(folder: Path) -> Setup:
    """Read only how the data of a saved model were set up.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`read_folder`.
    """
    check_files(folder, CONFIG)
    config = read_config(folder / CONFIG)
    try:
        return Setup.from_json(json.dumps(config["setup"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise incomplete(folder / CONFIG, error) from error


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
