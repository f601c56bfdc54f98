"""A model as a folder: weights as safetensors, everything else as JSON. Never pickle."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
from pyro.infer import Trace_ELBO
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pyro_contrastive._tools.litter import is_litter
from pyro_contrastive.components.component import (
    Spec,
    as_json_value,
    component_from_spec,
    refuse_missing_parts,
    tell_of_own_parts,
)
from pyro_contrastive.data.files import read_h5ad, write_h5ad
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.likelihoods.dispersion import DispersionPrior
from pyro_contrastive.objective import ContrastiveELBO, ContrastiveMeanFieldELBO
from pyro_contrastive.priors import LogNormalLibrary
from pyro_contrastive.saving.saved_config import (
    ADATA,
    CONFIG,
    ELBOS,
    FORMAT,
    WEIGHTS,
    check_files,
    incomplete,
    read_config,
)
from pyro_contrastive.training.history import History
from pyro_contrastive.training.trained_cells import PREFIX, TrainedCells
from pyro_contrastive.vae import ContrastiveVAE

PACKAGES = ("pyro-contrastive", "torch", "pyro-ppl", "anndata", "numpy")
Components = dict[str, Spec | list[Spec]]


@dataclass(frozen=True)
class SavedModel:
    """Everything a model is made of, apart from its data."""

    setup: Setup
    settings: dict[str, Any]
    elbo: str
    components: Components
    history: History
    is_trained: bool
    weights: Mapping[str, Tensor]
    conditions: dict[str, Any] | None = None  # code by cell name, where `train` was told them
    trained_cells: TrainedCells | None = None

    def elbo_class(self) -> type[Trace_ELBO]:
        """Pyro's ELBO class by its saved name."""
        return ELBOS[self.elbo]

    def make_components(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Make the components again, or take those `given` under the same keyword.

        Raises
        ------
        ValueError
            If parts of the user's own are not given, or the library's cannot be made.
        """
        made = {k: v for k, v in given.items() if v is not None}
        unused = [k for k in made if k not in self.components]
        if unused:
            msg = f"The saved model has no {unused[0]} that could be replaced by what was given."
            raise ValueError(msg)
        missing = {k: spec for k, spec in self.components.items() if k not in made}
        refuse_missing_parts(missing)
        for keyword, spec in missing.items():
            if isinstance(spec, list):
                made[keyword] = [component_from_spec(s, keyword) for s in spec]
            else:
                made[keyword] = component_from_spec(spec, keyword)
        return made

    def library_moments(self) -> dict[str, Any]:
        """Arguments of the library size prior, from the weights; empty when it is observed."""
        prefix = "model.library_prior."
        if f"{prefix}log_means" not in self.weights:
            return {}
        return {
            "library_log_means": self.weights[f"{prefix}log_means"].numpy(),
            "library_log_vars": self.weights[f"{prefix}log_variances"].numpy(),
        }

    def load_weights(self, vae: ContrastiveVAE) -> None:
        """Put the weights into a module.

        Raises
        ------
        ValueError
            If they do not fit it.
        """
        try:
            vae.load_state_dict(dict(self.weights))
        except RuntimeError as error:
            msg = (
                "The saved weights do not fit the model: a likelihood, prior or penalty differs "
                f"from the one it was trained with, or a file was changed. {error}"
            )
            raise ValueError(msg) from error


def elbo_name(vae: ContrastiveVAE) -> str:
    """Name of the module's objective, to be written down.

    Raises
    ------
    TypeError
        If it is an objective of the user's own, which could not be made again.
    """
    names = {ContrastiveELBO: "trace", ContrastiveMeanFieldELBO: "mean_field"}
    if type(vae.objective) not in names:
        msg = (
            f"The objective {type(vae.objective).__name__} cannot be saved. Set module.objective "
            "to a ContrastiveELBO before saving, and assign yours again after loading."
        )
        raise TypeError(msg)
    return names[type(vae.objective)]


def components_of(vae: ContrastiveVAE) -> Components:
    """Write down the swappable parts of a module.

    Not among them: the Wasserstein setting, and the log-normal prior of the library size, which is
    made from its moments.
    """
    model = vae.model
    components: Components = {
        "likelihood": model.likelihood.spec(),
        "background_prior": model.background_prior.spec(),
        "salient_prior": model.salient_prior.spec(),
        "penalties": [penalty.spec() for penalty in vae.given_penalties],
    }
    if model.library_prior is not None and not isinstance(model.library_prior, LogNormalLibrary):
        components["library_prior"] = model.library_prior.spec()
    if isinstance(model.dispersion_prior, DispersionPrior):
        components["dispersion_prior"] = model.dispersion_prior.prior.spec()
    return components


def write_folder(
    folder: Path,
    saved: SavedModel,
    adata: ad.AnnData | None,
    anndata_write_kwargs: Mapping[str, Any] | None = None,
    *,
    overwrite: bool,
) -> None:
    """Write the folder beside its place and move it there when it is complete.

    Raises
    ------
    FileExistsError
        If `folder` is there and `overwrite` is not set, or it holds anything but a saved model.
    TypeError
        If the settings cannot be written as JSON.
    """
    _check_free(folder, overwrite=overwrite)
    tell_of_own_parts(saved.components)
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
    }
    text = json.dumps(config, indent=1, default=as_json_value)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        (new / CONFIG).write_text(text, encoding="utf-8")
        # safetensors refuses tensors that share memory, as one prior used for z and for s does.
        weights = {k: v.detach().cpu().clone().contiguous() for k, v in saved.weights.items()}
        if saved.trained_cells is not None:
            weights |= saved.trained_cells.to_tensors()
        # save_file would make a file that only its owner may read.
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
    """Put `new` in the place of `folder`; if that fails, `folder` is what it was."""
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
            weights={k: v for k, v in tensors.items() if not k.startswith(PREFIX)},
            trained_cells=TrainedCells.from_tensors(tensors, config["trained_on"]),
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
    except Exception as error:  # whatever is in a damaged file may be raised
        msg = f"{folder / ADATA} is damaged, or not written by AnnData: {error}"
        raise ValueError(msg) from error


def read_setup(folder: Path) -> Setup:
    """Read how the data of a saved model were set up, and nothing else.

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
        If there is one.
    """
    if prefix is not None:
        msg = (
            f"prefix={prefix!r}: several models in one folder are not supported; use a folder each."
        )
        raise ValueError(msg)
