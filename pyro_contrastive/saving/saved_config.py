"""Checking the files of a saved model before anything is made from them.

They may come from anyone. All they can do is name the library's own parts and give them numbers: no
name in them is imported, and nothing outside the folder is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive.components.library_parts import PART_KINDS
from pyro_contrastive.data.file_checks import refuse_link_outside
from pyro_contrastive.saving.checksums import CHECKSUMS, check_config

CONFIG, WEIGHTS, ADATA = "config.json", "model.safetensors", "adata.h5ad"
FORMAT = 2
"""The present format. Format 1 had no checksums, and did not say how a model was trained."""
SETTINGS: dict[str, tuple[type, ...]] = {
    "n_hidden": (int,),
    "n_background_latent": (int,),
    "n_salient_latent": (int,),
    "n_layers": (int,),
    "dropout_rate": (int, float),
    "use_observed_lib_size": (bool, int),
    "wasserstein_penalty": (int, float),
    "dispersion_posterior": (str,),
    "n_layers_decoder": (int, NoneType),
    "elbo_kwargs": (dict,),
}
"""Arguments of ``ContrastiveVI`` that are saved, with their types in JSON."""
CONDITIONS = ["code", "total"]
"""Columns of the table of cells whose population was given to ``train``."""
MOST_PARTICLES = 10_000
"""Draws of the ELBO that a file may ask for; more would only seem to hang."""
ELBOS = {"trace": Trace_ELBO, "mean_field": TraceMeanField_ELBO}
"""Pyro's ELBO classes by their saved names."""
ENTRIES: dict[str, tuple[type, ...]] = {
    "setup": (dict,),
    "settings": (dict,),
    "elbo": (str,),
    "components": (dict,),
    "is_trained": (bool,),
    "conditions": (dict, NoneType),
    "trained_on": (str, NoneType),
    "history": (dict,),
}
"""Entries of the configuration, with their types."""
SINCE_2: dict[str, tuple[type, ...]] = {"training": (list,), CHECKSUMS: (dict,)}
"""Entries that are new in format 2."""


def check_files(folder: Path, *names: str) -> None:
    """Refuse a folder that lacks one of these files, or in which one is a link to the outside.

    The folder itself may be a link, because the user named it.

    Raises
    ------
    FileNotFoundError
        If one is missing, naming it.
    InvalidFileError
        If one is a symbolic link to something outside the folder.
    """
    for name in names:
        refuse_link_outside(folder / name, folder)
        if not (folder / name).is_file():
            msg = f"{folder} is not a saved model: it has no {name}."
            raise FileNotFoundError(msg)


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration: a dictionary with at least :data:`ENTRIES`, each of its type.

    Raises
    ------
    InvalidFileError
        If it is damaged, or was written in another format by a later version.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found, written_by = config["format"], config["versions"]["pyro-contrastive"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"{path} is damaged: {error}."
        raise InvalidFileError(msg) from error
    if type(found) is not int or not 1 <= found <= FORMAT:
        msg = (
            f"{path.parent} has format {found!a} (written by pyro-contrastive {written_by!a}); "
            f"this version reads formats up to {FORMAT}. Load it with a later version."
        )
        raise InvalidFileError(msg)
    _check_entries(path, "", config, ENTRIES, required=True)
    if found > 1:
        _check_entries(path, "", config, SINCE_2, required=True)
    conditions = config["conditions"]
    if conditions is not None and conditions.get("columns") != CONDITIONS:
        raise incomplete(path, f"conditions: the columns are not {CONDITIONS}")
    _check_setup(path, config["setup"])
    _check_entries(path, "settings: ", config["settings"], SETTINGS, required=False)
    particles = config["settings"].get("elbo_kwargs", {}).get("num_particles", 1)
    if type(particles) is not int or not 1 <= particles <= MOST_PARTICLES:
        raise incomplete(path, f"settings: num_particles is {particles!a}")
    if config["elbo"] not in ELBOS:
        raise incomplete(path, f"there is no ELBO {config['elbo']!a}")
    for keyword, part in config["components"].items():
        _check_part(path, keyword, part)
    if CHECKSUMS in config:
        check_config(config, path)
    return dict(config)


def incomplete(path: Path, error: Exception | str) -> InvalidFileError:
    """Return the error about a file that has been changed or cut since it was written."""
    what = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return InvalidFileError(f"{path} is damaged or incomplete ({what}).")


def _check_entries(
    path: Path,
    where: str,
    found: Mapping[str, Any],
    wanted: Mapping[str, tuple[type, ...]],
    *,
    required: bool,
) -> None:
    """Refuse entries that are missing or of another type; unknown ones if none is required."""
    missing = [name for name in wanted if name not in found] if required else []
    unknown = [] if required else [name for name in found if name not in wanted]
    if missing:
        raise incomplete(path, f"{where}it has no {missing[0]!r}")
    if unknown:
        raise incomplete(path, f"{where}there is no {unknown[0]!a}")
    for name, types in wanted.items():
        if name in found and type(found[name]) not in types:
            kind = type(found[name]).__name__
            raise incomplete(path, f"{where}{name!r} cannot be a {kind}")


def _check_setup(path: Path, setup: Mapping[str, Any]) -> None:
    """Refuse a record that does not have the form of a :class:`Setup`."""
    categories = setup.get("categories")
    if not isinstance(categories, dict) or not all(map(_are_names, categories.values())):
        raise incomplete(path, "setup: 'categories' is not a table of lists of names")
    if not _are_names(setup.get("genes")):
        raise incomplete(path, "setup: 'genes' is not a list of names")
    for name, value in setup.items():
        if name in {"categorical_covariate_keys", "continuous_covariate_keys", "genes"}:
            fits = _are_names(value)
        elif name == "size_factor_unit":
            fits = type(value) in {int, float} and 0 < value < math.inf
        else:
            fits = name == "categories" or type(value) in {NoneType, str}
        if not fits:
            raise incomplete(path, f"setup: {name!a} cannot be a {type(value).__name__}")
    keys = [setup.get(name) for name in ("batch_key", "labels_key", "condition_key")]
    unknown = {*keys, *setup.get("categorical_covariate_keys", [])} - {None, *categories}
    if unknown:
        raise incomplete(path, f"setup: 'categories' lacks {sorted(unknown)[0]!a}")


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(type(name) is str for name in value)


def _check_part(path: Path, keyword: str, part: object) -> None:
    """Refuse anything but a saved part, or a list of parts where only one is possible."""
    if keyword not in PART_KINDS:
        raise incomplete(path, f"components: a model has no {keyword!a}")
    if isinstance(part, list) != (keyword == "penalties"):
        raise incomplete(path, f"components: {keyword!r} cannot be a {type(part).__name__}")
    if not all(map(_is_spec, part if isinstance(part, list) else [part])):
        raise incomplete(path, f"components: {keyword!r} is not a class with its arguments")


def _is_spec(value: Any) -> bool:
    """Tell whether this has the form of what :meth:`Component.spec` returns."""
    if not isinstance(value, dict) or not isinstance(value.get("class"), str):
        return False
    if value.get("arguments", 0) is None:
        return isinstance(value.get("reason"), str)
    return isinstance(value.get("arguments"), dict)
