"""Convert models of scvi-tools' ContrastiveVI, from files or memory, to this library's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.interop.scvi import rename_scvi_weights
from pyro_contrastive.interop.scvi_archive import plain, read_archive
from pyro_contrastive.likelihoods import ZeroInflatedNegativeBinomial
from pyro_contrastive.priors import StandardNormal
from pyro_contrastive.saving.saved_config import CONFIG
from pyro_contrastive.saving.saved_model import Components, SavedModel
from pyro_contrastive.training.history import History

MODEL_NAME = "ContrastiveVI"
MODEL_FILE = "model.pt"
SETTINGS = (
    "n_hidden",
    "n_background_latent",
    "n_salient_latent",
    "n_layers",
    "dropout_rate",
    "use_observed_lib_size",
    "wasserstein_penalty",
)
"""Arguments of scvi-tools' constructor, the same in versions 1.1 to 1.5 and in this library."""


@dataclass(frozen=True)
class _ScviParts:
    """The content of an scvi-tools model, in its own format."""

    source: str
    registry: Mapping[str, Any]
    init_params: Mapping[str, Any]
    genes: Any
    weights: Mapping[str, Any]
    is_trained: bool
    history: History


def read_scvi(path_or_model: str | os.PathLike[str] | object) -> SavedModel:
    """Read a model of scvi-tools' ContrastiveVI (versions 1.1 to 1.5).

    Covariates and size factors in its setup are left out: scvi-tools registers them, but its
    contrastiveVI does not use them. The objective has analytic KL divergences, as in scvi-tools.

    Parameters
    ----------
    path_or_model
        A model object, or the path where ``model.save`` saved one: the folder, or the file
        ``model.pt`` in it (with its prefix, if it has one). A file is read without running
        anything from it; scvi-tools need not be installed.

    Returns
    -------
    The same model as if it had been saved by this library. The training history is included when
    a model object is read; it is left out of files, where it is pickled pandas.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If `path_or_model` is neither a path nor a model of scvi-tools.
    RefusedObjectError
        If reading the file would require running code; the error says which.
    InvalidFileError
        If it is another model of scvi-tools, or the file is damaged.
    """
    if isinstance(path_or_model, str | os.PathLike):
        parts = _parts_of_file(_find_file(Path(path_or_model)))
    else:
        parts = _parts_of_object(path_or_model)
    name = parts.registry.get("model_name")
    if name != MODEL_NAME:
        msg = f"{parts.source} is a {name} of scvi-tools; only its {MODEL_NAME} can be read."
        raise InvalidFileError(msg)
    try:
        return _as_saved_model(parts)
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{parts.source} is damaged or incomplete ({type(error).__name__}: {error})."
        raise InvalidFileError(msg) from error


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        if path.is_file():
            return path
        msg = f"There is no {path}."
        raise FileNotFoundError(msg)
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    found = sorted(path.glob(f"*{MODEL_FILE}"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f.name for f in found)
        msg = f"{path} holds several models ({names}); give the path of one of these files."
        raise ValueError(msg)
    if (path / CONFIG).is_file():
        msg = f"{path} was saved by this library, not by scvi-tools: use ContrastiveVI.load."
        raise ValueError(msg)
    msg = f"{path} has no {MODEL_FILE}, in which scvi-tools (from 0.15) saves a model."
    raise FileNotFoundError(msg)


def _parts_of_file(path: Path) -> _ScviParts:
    content = read_archive(path)
    wanted = ("model_state_dict", "var_names", "attr_dict")
    if not isinstance(content, dict) or not all(name in content for name in wanted):
        msg = f"{path} is not a model saved by scvi-tools: it lacks {', '.join(wanted)}."
        raise InvalidFileError(msg)
    attributes = content["attr_dict"]
    if not isinstance(attributes, dict) or not isinstance(attributes.get("registry_"), dict):
        msg = f"{path} is not a model saved by scvi-tools: it lacks the registry of the data."
        raise InvalidFileError(msg)
    return _ScviParts(
        source=str(path),
        registry=attributes["registry_"],
        init_params=attributes.get("init_params_", {}),
        genes=content["var_names"],
        weights=content["model_state_dict"],
        is_trained=attributes.get("is_trained_") is True,
        history=History(),
    )


def _parts_of_object(model: Any) -> _ScviParts:
    try:
        registry = model.registry_
        return _ScviParts(
            source="The model",
            registry=registry,
            init_params=model.init_params_,
            genes=registry["field_registries"]["X"]["state_registry"]["column_names"],
            weights=model.module.state_dict(),
            is_trained=bool(model.is_trained_),
            history=_history(model.history_ or {}),
        )
    except (AttributeError, KeyError, TypeError) as error:
        msg = (
            f"from_scvi takes a path or a model of scvi-tools' {MODEL_NAME}, not a "
            f"{type(model).__module__}.{type(model).__qualname__}."
        )
        raise TypeError(msg) from error


def _history(frames: Mapping[str, Any]) -> History:
    """Convert what was recorded by epoch; scvi-tools can also record by step, which is left out."""
    columns = {n: f.iloc[:, 0].dropna() for n, f in frames.items() if f.index.name == "epoch"}
    return History.from_json(
        {name: {str(e): float(x) for e, x in column.items()} for name, column in columns.items()}
    )


def _as_saved_model(parts: _ScviParts) -> SavedModel:
    settings = _settings(parts)
    priors = {
        f"{latent}_prior": StandardNormal(settings[f"n_{latent}_latent"])
        for latent in ("background", "salient")
    }
    weights = rename_scvi_weights(
        _tensors(parts), latent_library=not settings["use_observed_lib_size"]
    )
    for name, prior in priors.items():  # constants, which scvi-tools does not save
        weights |= {f"model.{name}.{k}": v for k, v in prior.state_dict().items()}
    components: Components = {name: prior.spec() for name, prior in priors.items()}
    components |= {"likelihood": ZeroInflatedNegativeBinomial().spec(), "penalties": []}
    return SavedModel(
        setup=_setup(parts),
        settings=settings,
        elbo="mean_field",
        components=components,
        history=parts.history,
        is_trained=parts.is_trained,
        weights=weights,
    )


def _settings(parts: _ScviParts) -> dict[str, Any]:
    given = plain(parts.init_params["non_kwargs"])
    unknown = sorted(set(given) - set(SETTINGS))
    if unknown or any(plain(parts.init_params.get("kwargs") or {}).values()):
        msg = (
            f"{parts.source} was made with arguments that contrastiveVI does not have in "
            f"scvi-tools 1.1 to 1.5: {unknown or parts.init_params['kwargs']}."
        )
        raise InvalidFileError(msg)
    return {name: given[name] for name in SETTINGS} | {"elbo_kwargs": {}}


def _tensors(parts: _ScviParts) -> dict[str, Tensor]:
    # scvi-tools saves Pyro's parameter store with the weights; its contrastiveVI does not use it.
    weights = {k: v for k, v in parts.weights.items() if k != "pyro_param_store"}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            msg = f"{parts.source} has a {type(value).__name__} where the weight {name} should be."
            raise TypeError(msg)
    return {name: value.detach().cpu() for name, value in weights.items()}


def _setup(parts: _ScviParts) -> Setup:
    """Read keys and categories; batches keep the order that the weights have."""
    keys = plain(parts.registry["setup_args"])
    fields = parts.registry["field_registries"]
    categories = {}
    for name, field in (("batch_key", "batch"), ("labels_key", "labels")):
        if keys.get(name) is not None:
            levels = plain(fields[field]["state_registry"]["categorical_mapping"])
            categories[keys[name]] = [str(level) for level in levels]
    return Setup(
        layer=keys.get("layer"),
        batch_key=keys.get("batch_key"),
        labels_key=keys.get("labels_key"),
        categories=categories,
        genes=tuple(map(str, plain(parts.genes))),
    )
