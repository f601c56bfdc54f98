"""Checks of the parts that a user gives, before a model is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast
from weakref import WeakSet

from numpy.typing import ArrayLike
from torch.distributions import constraints

from pyro_contrastive.components.component import Component, check_component
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.likelihoods import Likelihood, ZeroInflatedNegativeBinomial
from pyro_contrastive.likelihoods.dispersion import check_positive, draws_of
from pyro_contrastive.model import ContrastiveModel
from pyro_contrastive.penalties import Penalty
from pyro_contrastive.priors import LogNormalLibrary, Prior, PriorLike, as_prior

PRIORS = ("background_prior", "salient_prior", "library_prior")

Part = tuple[str, Component]
"""The name of an argument, and the part that was given by it."""


def likelihood_given(likelihood: object) -> Likelihood:
    """Return the likelihood of a model, refusing what cannot be one; by default the ZINB.

    Raises
    ------
    TypeError
        If it is not a `Likelihood`, or does not name its heads.
    """
    if likelihood is None:
        return ZeroInflatedNegativeBinomial()
    check_component(likelihood, Likelihood, "likelihood")
    given = cast(Likelihood, likelihood)
    heads, name = getattr(given, "heads", None), type(given).__name__
    if isinstance(heads, str):
        msg = f"likelihood: {name}.heads must be a tuple of names, ({heads!r},), not a string."
        raise TypeError(msg)
    if heads is None and type(given).build is Likelihood.build:
        msg = (
            f"likelihood: {name} does not say which heads the decoder has; for instance "
            'heads = ("scale",) in the class.'
        )
        raise TypeError(msg)
    return given


def guide_given(guide: object) -> ContrastiveGuide:
    """Return the guide of a model, refusing what cannot be one; by default the mean-field one.

    Raises
    ------
    TypeError
        If it is not a `ContrastiveGuide`.
    """
    if guide is None:
        return ContrastiveGuide()
    check_component(guide, ContrastiveGuide, "guide")
    return cast(ContrastiveGuide, guide)


def penalties_given(penalties: object) -> tuple[Penalty, ...]:
    """Return the penalties of a model, refusing anything else.

    Raises
    ------
    TypeError
        If it is not a sequence of `Penalty` objects.
    """
    if isinstance(penalties, Penalty) or not isinstance(penalties, Iterable):
        name = penalties.__name__ if isinstance(penalties, type) else type(penalties).__name__
        msg = f"penalties must be a list: penalties=[{name}(...)]."
        raise TypeError(msg)
    given = tuple(penalties)
    for penalty in given:
        check_component(penalty, Penalty, "penalties")
    return given


def library_prior_given(
    given: PriorLike | None,
    log_means: ArrayLike | None,
    log_vars: ArrayLike | None,
    *,
    n_batch: int,
    is_observed: bool,
) -> Prior | None:
    """Return the prior of the library size, or ``None`` if that is observed.

    Raises
    ------
    ValueError
        If the arguments contradict each other, or there is not one number per batch.
    """
    if is_observed:
        if given is not None:
            msg = "A library_prior needs a latent library size: use_observed_lib_size=False."
            raise ValueError(msg)
        return None
    if given is not None:
        prior = as_prior(given, 1, "library_prior")
        check_positive(prior, "library_prior")
        return prior
    if log_means is None or log_vars is None:
        msg = (
            "With use_observed_lib_size=False the library size has a prior: give "
            "library_log_means and library_log_vars, one number per batch, or library_prior."
        )
        raise ValueError(msg)
    per_batch = LogNormalLibrary(log_means, log_vars)
    if per_batch.log_means.numel() != max(n_batch, 1):
        msg = (
            f"library_log_means has {per_batch.log_means.numel()} entries, but there are "
            f"{max(n_batch, 1)} batches."
        )
        raise ValueError(msg)
    return per_batch


def positive_sites(**priors: Prior) -> list[str]:
    """Names of the sites whose prior has positive support.

    Raises
    ------
    ValueError
        If the support of a prior is neither the real line nor its positive half.
    """
    for name, prior in priors.items():
        if prior.support not in {constraints.real, constraints.positive}:
            msg = (
                f"The prior of {name} has support {prior.support}; it must be constraints.real or "
                "constraints.positive, which the guide covers."
            )
            raise ValueError(msg)
    return [name for name, prior in priors.items() if prior.support is constraints.positive]


def typical_log_library(prior: Prior | None) -> float | None:
    """Centre of the library size's prior on the log scale, at which its posterior starts."""
    if prior is None:
        return None
    if isinstance(prior, LogNormalLibrary):
        return float(prior.log_means.mean())
    return float(draws_of(prior).log().median())


def parts_of(
    model: ContrastiveModel, guide: object, penalties: Iterable[Penalty]
) -> Iterator[Part]:
    """Yield likelihood, priors, guide and penalties, each after the name of its argument.

    A program that has replaced the guide is left out, since it is not a part that was given.
    """
    yield "likelihood", model.likelihood
    for keyword in PRIORS:
        prior = getattr(model, keyword)
        if prior is not None:
            yield keyword, prior
    if isinstance(guide, ContrastiveGuide):
        yield "guide", guide
    for penalty in penalties:
        yield "penalties", penalty


_owned: WeakSet[Component] = WeakSet()


def register_owned(parts: Iterable[Part]) -> None:
    """Record that a model now owns the parts that training changes; a second model may not.

    Raises
    ------
    ValueError
        If one already belongs to another model.
    """
    unique = {
        id(part): (keyword, part) for keyword, part in parts
    }  # one prior may be given for both z and s
    for keyword, part in unique.values():
        if not part.is_changed_by_training:
            continue
        if part in _owned:
            msg = (
                f"{keyword}: this {type(part).__name__} object already belongs to a model. Make a "
                "new one for every model, or training one would change the other."
            )
            raise ValueError(msg)
        _owned.add(part)
