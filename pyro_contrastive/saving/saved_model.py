"""The content of a saved model, and making the model again from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive.components.component import (
    Spec,
    component_from_spec,
    refuse_missing_parts,
)
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.likelihoods.dispersion import DispersionPrior
from pyro_contrastive.objective import ContrastiveELBO, ContrastiveMeanFieldELBO
from pyro_contrastive.priors import LogNormalLibrary
from pyro_contrastive.saving.saved_config import ELBOS
from pyro_contrastive.saving.saved_posteriors import SavedPosteriors
from pyro_contrastive.training.history import History
from pyro_contrastive.training.trained_cells import TrainedCells
from pyro_contrastive.vae import ContrastiveVAE

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
    conditions: dict[str, Any] | None = None  # code by cell name, if they were given to `train`
    trained_cells: TrainedCells | None = None
    posteriors: SavedPosteriors | None = None
    runs: tuple[dict[str, Any], ...] = ()  # arguments of each call of `train`
    first_weights: Mapping[str, Tensor] | None = None  # before the first of them

    def elbo_class(self) -> type[Trace_ELBO]:
        """Pyro's ELBO class by its saved name."""
        return ELBOS[self.elbo]

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Check which components are given, by keyword; ``None`` counts as not given.

        Raises
        ------
        ValueError
            If parts of the user's own are not given, or parts are given that the model lacks.
        """
        made = [k for k, part in given.items() if part is not None]
        unused = [k for k in made if k not in self.components]
        if unused:
            msg = f"The saved model has no {unused[0]} that could be replaced by what was given."
            raise ValueError(msg)
        refuse_missing_parts({k: spec for k, spec in self.components.items() if k not in made})

    def make_components(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Make the components again, except those that are `given`, by keyword.

        Raises
        ------
        InvalidFileError
            If parts of the library cannot be made with the saved arguments.
        """
        made = {k: v for k, v in given.items() if v is not None}
        missing = {k: spec for k, spec in self.components.items() if k not in made}
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
        InvalidFileError
            If their names, shapes or types differ from those of the module.
        """
        _put_weights(self.weights, vae)

    def untrained(self, vae: ContrastiveVAE) -> ContrastiveVAE:
        """Return a copy of a module that has the weights from before the first training.

        Raises
        ------
        InvalidFileError
            As :meth:`load_weights`.
        """
        copied = copy.deepcopy(vae)
        _put_weights(self.first_weights or {}, copied)
        return copied


def _put_weights(weights: Mapping[str, Tensor], vae: ContrastiveVAE) -> None:
    why = "a likelihood, prior, guide or penalty differs from the one it was trained with, or a "
    why = f"The saved weights do not fit the model: {why}file was changed."
    types = {name: value.dtype for name, value in vae.state_dict().items()}
    for name, value in weights.items():
        # torch would convert them, whatever they are.
        if value.dtype.is_floating_point != types.get(name, value.dtype).is_floating_point:
            raise InvalidFileError(f"{why} {name} holds numbers of type {value.dtype}.")
    try:
        vae.load_state_dict(dict(weights))
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidFileError(f"{why} {error}") from error


def elbo_name(vae: ContrastiveVAE) -> str:
    """Name under which the module's objective is saved.

    Raises
    ------
    TypeError
        If it is an objective of the user's own, which loading could not make again.
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
    """Return the swappable parts of a module as JSON.

    This leaves out the Wasserstein penalty that is a setting, and the log-normal prior of the
    library size, which is made from its moments.

    Raises
    ------
    TypeError
        If the guide was replaced by another kind of program.
    """
    model, guide = vae.model, cast(object, vae.guide)
    if not isinstance(guide, ContrastiveGuide):
        msg = (
            f"The guide {type(guide).__name__} cannot be saved: it is not a ContrastiveGuide. "
            "Write it as a subclass of ContrastiveGuide, and give it to the constructor (guide=)."
        )
        raise TypeError(msg)
    components: Components = {
        "likelihood": model.likelihood.spec(),
        "background_prior": model.background_prior.spec(),
        "salient_prior": model.salient_prior.spec(),
        "guide": guide.spec(),
        "penalties": [penalty.spec() for penalty in vae.given_penalties],
    }
    if model.library_prior is not None and not isinstance(model.library_prior, LogNormalLibrary):
        components["library_prior"] = model.library_prior.spec()
    if isinstance(model.dispersion_prior, DispersionPrior):
        components["dispersion_prior"] = model.dispersion_prior.prior.spec()
    return components
