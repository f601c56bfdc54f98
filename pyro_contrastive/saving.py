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
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyro_contrastive.components import Spec, component_from_spec
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.training.history import History
from pyro_contrastive.vae import ContrastiveVAE

CONFIG, WEIGHTS, ADATA = "config.json", "model.safetensors", "adata.h5ad"
FORMAT = 1
PACKAGES = ("pyro-contrastive", "torch", "pyro-ppl", "anndata", "numpy")
ELBOS = {"trace": Trace_ELBO, "mean_field": TraceMeanField_ELBO}
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

    def elbo_class(self) -> type[Trace_ELBO]:
        """Pyro's ELBO class by its saved name."""
        return ELBOS[self.elbo]

    def make_components(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Make the components again, or take those `given` under the same keyword."""
        made: dict[str, Any] = {}
        for keyword, spec in self.components.items():
            if given[keyword] is not None:
                made[keyword] = given[keyword]
            elif isinstance(spec, list):
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


def components_of(vae: ContrastiveVAE) -> Components:
    """Write down the swappable parts of a module (the Wasserstein setting is not one of them)."""
    return {
        "likelihood": vae.model.likelihood.spec(),
        "background_prior": vae.model.background_prior.spec(),
        "salient_prior": vae.model.salient_prior.spec(),
        "penalties": [penalty.spec() for penalty in vae.given_penalties],
    }


def write_folder(
    folder: Path, saved: SavedModel, adata: ad.AnnData | None, *, overwrite: bool
) -> None:
    """Write the folder beside its place and move it there when it is complete.

    Raises
    ------
    FileExistsError
        If `folder` is there and `overwrite` is not set.
    TypeError
        If a component's arguments cannot be written as JSON.
    """
    if folder.exists() and not overwrite:
        msg = f"{folder} is there already; save(..., overwrite=True) replaces it."
        raise FileExistsError(msg)
    config = {
        "format": FORMAT,
        "versions": {name: version(name) for name in PACKAGES},
        "setup": json.loads(saved.setup.to_json()),
        "settings": saved.settings,
        "elbo": saved.elbo,
        "components": saved.components,
        "is_trained": saved.is_trained,
        "history": saved.history.to_json(),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        (new / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        weights = {k: v.detach().cpu().contiguous() for k, v in saved.weights.items()}
        save_file(weights, new / WEIGHTS)
        if adata is not None:
            adata.write_h5ad(new / ADATA, compression="gzip")
        if folder.exists():
            os.replace(folder, Path(temporary) / "old")
        os.replace(new, folder)


def read_folder(folder: Path) -> tuple[SavedModel, ad.AnnData | None]:
    """Read what :func:`write_folder` wrote.

    Raises
    ------
    FileNotFoundError
        If a file is missing, naming it.
    ValueError
        If it was written by a later version with another format.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            msg = f"{folder} is not a saved model: it has no {name}."
            raise FileNotFoundError(msg)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if config["format"] != FORMAT:
        written_by = config["versions"]["pyro-contrastive"]
        msg = (
            f"{folder} has format {config['format']} (written by pyro-contrastive {written_by}); "
            f"this version reads format {FORMAT}."
        )
        raise ValueError(msg)
    saved = SavedModel(
        setup=Setup.from_json(json.dumps(config["setup"])),
        settings=config["settings"],
        elbo=config["elbo"],
        components=config["components"],
        history=History.from_json(config["history"]),
        is_trained=config["is_trained"],
        weights=load_file(folder / WEIGHTS),
    )
    adata = ad.read_h5ad(folder / ADATA) if (folder / ADATA).is_file() else None
    return saved, adata
