"""The subject of a report: the comparison, the settings, and the fitted model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.analysis.null_check import NullCheck
from pyro_contrastive.components.component import Component
from pyro_contrastive.data.levels import suggestion
from pyro_contrastive.guides import SHORT_NAMES as GUIDES
from pyro_contrastive.likelihoods import SHORT_NAMES, Likelihood, ZeroInflatedNegativeBinomial
from pyro_contrastive.presets import PRESETS, Sizes, preset_arguments

__all__ = [
    "LATENTS",
    "TRAIN_SIZE",
    "Columns",
    "FitSettings",
    "FittedModel",
    "Study",
    "chosen_likelihood",
    "chosen_schedule",
    "fit_settings",
    "flat_settings",
    "known_preset",
    "study_of_file",
]

Kind = Literal["background", "salient"]
LATENTS: tuple[Kind, Kind] = ("background", "salient")
TRAIN_SIZE = 0.9
"""Share of the cells that train in the shell; the others are held out."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Keyword arguments of the model and of its training.

    Parameters
    ----------
    model
        Given to ``ContrastiveVI(adata, ...)``, or to ``ContrastiveVI.from_preset``.
    train
        Given to ``model.train(...)``.
    preset
        A row of :func:`pyro_contrastive.presets`. Default: none, the constructor's own defaults.
    refine
        Refine the posterior of every cell after training, and take the latents from it. Default:
        ``False``.
    null_shuffles
        Number of fits to shuffled conditions that the results are held against; 0 for none.
        Default 3.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    refine: bool = False
    null_shuffles: int = 3


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where the counts, conditions and covariates are in the data.

    The fields are arguments of ``ContrastiveVI.setup_anndata``, under the same names.

    Parameters
    ----------
    condition_key, background
        Column of ``obs`` with the condition, and its value for background cells.
    layer
        Layer of the counts. Default: ``X``.
    batch_key, size_factor_key, sample_key
        Columns of batches, of size factors and of donors. Default: none.
    categorical_covariate_keys, continuous_covariate_keys
        Columns of further covariates. Default: none.
    """

    condition_key: str
    background: str
    layer: str | None = None
    batch_key: str | None = None
    size_factor_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()
    sample_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared, and the names that the page uses.

    Parameters
    ----------
    name
        Stem of the ``.h5ad`` file written.
    title, lead
        Heading of the page and the sentence under it.
    columns
        Names of the columns and the layer with counts, conditions and covariates.
    label_key
        Column of labels that the conditions share, such as cell type. Default: none.
    label_name
        Name of the labels in figures and page. Default "labels".
    genes
        Genes to look up in the plain counts. Default: the ones that differ most.
    source
        Where the data come from. Default: left out.
    cautions
        Warnings of the setup, for the page. Default: none.
    """

    name: str
    title: str
    lead: str
    columns: Columns
    label_key: str | None = None
    label_name: str = "labels"
    genes: tuple[str, ...] | None = None
    source: str = ""
    cautions: tuple[str, ...] = ()


def study_of_file(file: Path, columns: Columns, label_key: str | None = None) -> Study:
    """Make the study of a user's own file, with the names that the page uses.

    Parameters
    ----------
    file
        Names the results; an ``.h5ad`` file, a zarr store or another kind that can be read.
    columns, label_key
        As in :class:`Study`.
    """
    return Study(
        name=f"{file.stem}_latents",
        title=f"{file.stem}: what is shared and what is salient",
        lead=f"Background: cells whose {columns.condition_key} is {columns.background}. "
        "Target: all others.",
        columns=columns,
        label_key=label_key,
        label_name=(label_key or "labels").replace("_", " "),
        source=f"File {file.name}.",
    )


class FittedModel(Protocol):
    """The part of a fitted model's interface that the results use."""

    @property
    def history(self) -> Mapping[str, pd.DataFrame]:
        """Tables of the training by epoch."""

    @property
    def held_out_indices(self) -> NDArray[np.int64] | None:
        """Positions of the cells that did not train; ``None`` if that is not known."""

    def refine_posterior(self) -> None:
        """Refine the posteriors of all cells, and keep them."""

    def get_latent_representation(
        self, *, representation_kind: Kind, refine: bool = False
    ) -> NDArray[Any]:
        """Latent means [cells, latents]."""

    @property
    def setup(self) -> Any:
        """Roles of the columns."""

    @property
    def adata(self) -> Any:
        """The model's cells."""

    def differential_expression(self, **settings: Any) -> pd.DataFrame:
        """Test every gene."""

    @property
    def get_group_effects(self) -> Callable[..., pd.DataFrame]:
        """Effects by group and sample."""

    def null_check(self, n_shuffles: int, *, seed: int = 0, silent: bool = False) -> NullCheck:
        """Compare the fit with fits to shuffled conditions."""

    def save(self, dir_path: str, *, overwrite: bool = False) -> None:
        """Write the model into a folder."""


def known_preset(name: str) -> str | None:
    """Return the preset as the table of presets writes it; ``None`` for "none".

    Raises
    ------
    ValueError
        If there is no such preset.
    """
    spelled = {known.lower(): known for known in PRESETS}
    if name.lower() not in {"none", *spelled}:
        raise ValueError(
            f"there is no preset {name!r}; available: none, {', '.join(PRESETS)}."
            f"{suggestion(name, PRESETS)}"
        )
    return spelled.get(name.lower())


def chosen_likelihood(name: str | None, preset: str | None) -> Likelihood:
    """Make the likelihood of a short name, or by default the preset's."""
    if name is not None:
        return SHORT_NAMES[name]()
    # A preset's likelihood does not depend on the sizes.
    own = preset_arguments(preset, Sizes(2, 1, 1)).get("likelihood") if preset else None
    return own or ZeroInflatedNegativeBinomial()


def chosen_schedule(name: str, preset: str | None) -> str:
    """Return the schedule for ``train``; "default" depends on the preset.

    Without penalties the fast schedule leaves more shared variation in the salient latent, and the
    other presets were not measured with it.
    """
    if name != "default":
        return name
    return "fast" if preset == "separated" else "reference"


def fit_settings(
    preset: str | None,
    likelihood: Likelihood,
    schedule: str,
    *,
    n_latents: tuple[int, int],
    max_epochs: int | None,
    batch_size: int,
    may_stop_early: bool,
    refine: bool = False,
    guide: str | None = None,
    null_shuffles: int | None = None,
) -> FitSettings:
    """Collect what was chosen in the shell into the arguments of model and training.

    Parameters
    ----------
    preset, likelihood
        As returned by :func:`known_preset` and :func:`chosen_likelihood`.
    schedule
        As in :func:`chosen_schedule`.
    n_latents
        Dimensions of the background and of the salient latent.
    max_epochs, batch_size
        Arguments of ``train``.
    may_stop_early
        Whether cells of both populations are held out, which early stopping needs.
    refine
        See :class:`FitSettings`.
    guide
        Short name of a guide. Default: that of the model.
    null_shuffles
        See :class:`FitSettings`. Default: 3 with the fast schedule, otherwise 0, since each takes
        as long as the fit.
    """
    sizes = {f"n_{kind}_latent": n for kind, n in zip(LATENTS, n_latents, strict=True)}
    train = {
        "schedule": chosen_schedule(schedule, preset),
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "train_size": TRAIN_SIZE,
        "early_stopping": may_stop_early,
    }
    model: dict[str, Any] = {**sizes, "likelihood": likelihood}
    if guide is not None:
        model["guide"] = GUIDES[guide]()
    if null_shuffles is None:
        null_shuffles = 3 if train["schedule"] == "fast" else 0
    return FitSettings(
        preset=preset, model=model, train=train, refine=refine, null_shuffles=null_shuffles
    )


def flat_settings(settings: FitSettings, **more: object) -> dict[str, object]:
    """All settings in one flat mapping, named after the call they belong to."""
    flat: dict[str, object] = {} if settings.preset is None else {"preset": settings.preset}
    flat |= {f"model: {name}": _in_short(value) for name, value in settings.model.items()}
    flat |= {f"train: {name}": value for name, value in settings.train.items()}
    flat["refine"] = settings.refine
    flat["null shuffles"] = settings.null_shuffles
    flat["seed"] = more["seed"]
    flat["scores: n_neighbors"] = more["n_neighbors"]
    return flat


def _in_short(value: object) -> object:
    """Write a component as the call that makes it, without its layers."""
    if not isinstance(value, Component):
        return value
    return f"{type(value).__name__}({value.extra_repr()})"
