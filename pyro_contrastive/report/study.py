"""What a report is about: the comparison, the settings, and what it needs of a fitted model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.components import Component
from pyro_contrastive.likelihoods import (
    Bernoulli,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)

__all__ = ["FitSettings", "FittedModel", "Study", "flat_settings", "named_likelihood"]

Kind = Literal["background", "salient"]


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Keyword arguments of the model and of its training.

    Parameters
    ----------
    model
        Given to ``ContrastiveVI(adata, ...)``.
    train
        Given to ``model.train(...)``.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared with what, and what the page calls it.

    Parameters
    ----------
    name
        Stem of the ``.h5ad`` file written.
    title, lead
        Heading of the page and the sentence under it.
    condition_key, background
        Column of ``obs`` with the condition, and its value for background cells.
    label_key
        Column of labels that the conditions share, such as cell type. Default: none.
    label_name
        What figures and page call the labels. Default "labels".
    batch_key, layer
        Column of batches, layer of the counts. Default: none, and ``X``.
    genes
        Genes to look up in the plain counts. Default: the ones that differ most.
    source
        Where the data come from. Default: left out.
    """

    name: str
    title: str
    lead: str
    condition_key: str
    background: str
    label_key: str | None = None
    label_name: str = "labels"
    batch_key: str | None = None
    layer: str | None = None
    genes: tuple[str, ...] | None = None
    source: str = ""


class FittedModel(Protocol):
    """What the results need of a fitted model."""

    @property
    def history(self) -> Mapping[str, pd.DataFrame]:
        """Tables of the training by epoch."""

    def get_latent_representation(self, *, representation_kind: Kind) -> NDArray[Any]:
        """Latent means [cells, latents]."""

    def save(self, dir_path: str, *, overwrite: bool = False) -> None:
        """Write the model into a folder."""


def named_likelihood(name: str) -> Likelihood:
    """Make the likelihood of a short name.

    Parameters
    ----------
    name
        "zinb", "nb", "poisson", "zip", "bernoulli" or "gaussian".
    """
    named: dict[str, type[Likelihood]] = {
        "zinb": ZeroInflatedNegativeBinomial,
        "nb": NegativeBinomial,
        "poisson": Poisson,
        "zip": ZeroInflatedPoisson,
        "bernoulli": Bernoulli,
        "gaussian": Gaussian,
    }
    return named[name]()


def flat_settings(settings: FitSettings, **more: object) -> dict[str, object]:
    """All settings in one level, named as in the call they belong to."""
    flat: dict[str, object] = {
        f"model: {name}": _in_short(value) for name, value in settings.model.items()
    }
    flat |= {f"train: {name}": value for name, value in settings.train.items()}
    flat["seed"] = more["seed"]
    flat["scores: n_neighbors"] = more["n_neighbors"]
    return flat


def _in_short(value: object) -> object:
    """Write a component as the call that makes it, rather than with all its layers."""
    if not isinstance(value, Component):
        return value
    return f"{type(value).__name__}({value.extra_repr()})"
