"""Fixed univariate distributions as priors, and the conversion of a user's argument to a prior."""

from __future__ import annotations

from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_contrastive._tools.arguments import check_arguments, shown
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.components.component import check_component
from pyro_contrastive.priors.base import Prior

_UNIVARIATE = (
    "AsymmetricLaplace",
    "Cauchy",
    "Chi2",
    "Exponential",
    "FisherSnedecor",
    "Gamma",
    "Gumbel",
    "HalfCauchy",
    "HalfNormal",
    "InverseGamma",
    "Laplace",
    "LogNormal",
    "Logistic",
    "NanMaskedNormal",
    "Normal",
    "SkewLogistic",
    "SoftAsymmetricLaplace",
    "SoftLaplace",
    "Stable",
    "StableWithLogProb",
    "StudentT",
    "VonMises",
    "Weibull",
)
FIXED: dict[str, Any] = {name: getattr(dist, name) for name in _UNIVARIATE if hasattr(dist, name)}
"""Pyro's distributions on the real line or its positive half, by name.

Only these can be made because a saved model names them.
"""


class FixedPrior(Prior):
    """Any fixed univariate distribution, the same and independent for every latent dimension.

    Parameters
    ----------
    distribution
        A torch or Pyro distribution whose parameters are tensors, scalar or of shape
        ``[n_latent]``, e.g. ``dist.Laplace(0., 1.)``.
    n_latent
        Dimension of the latent variable.

    Raises
    ------
    TypeError
        If `distribution` is not made from tensors alone (write a `Prior` then), or if its support
        is neither the real line nor its positive half.
    ValueError
        If its shape does not fit `n_latent`.
    """

    def __init__(self, distribution: torch.distributions.Distribution, n_latent: int) -> None:
        super().__init__()
        check_arguments(locals(), type(self).__name__)
        if not isinstance(distribution, torch.distributions.Distribution):
            msg = (  # type: ignore[unreachable]  # untyped callers
                "FixedPrior: distribution must be one of torch or pyro, such as "
                f"dist.Laplace(0., 1.), not {shown(distribution)}."
            )
            raise TypeError(msg)
        while isinstance(distribution, torch.distributions.Independent):
            distribution = distribution.base_dist
        self.n_latent = n_latent
        self.distribution_name = type(distribution).__name__
        self._make: Any = _of_pyro(type(distribution))
        names: list[str] = list(distribution.arg_constraints)
        values = {n: distribution.__dict__.get(n, getattr(distribution, n, None)) for n in names}
        parameters = {n: v for n, v in values.items() if isinstance(v, Tensor)}
        is_univariate = self._make is not None and parameters and not distribution.event_shape
        if is_univariate:
            self.support = half_line_or_line(distribution)
        if not is_univariate or self.distribution_name not in FIXED:
            msg = (
                f"{self.distribution_name} cannot be used directly: a fixed prior is a univariate "
                "torch or pyro distribution given by tensors, such as dist.Laplace(0., 1.). "
                "For anything else subclass pyro_contrastive.Prior."
            )
            raise TypeError(msg)
        if distribution.batch_shape not in {(), (1,), (n_latent,)}:
            msg = (
                f"The prior has shape {list(distribution.batch_shape)}, the latent variable "
                f"{n_latent} dimensions: give a scalar distribution or one of shape [{n_latent}]."
            )
            raise ValueError(msg)
        if any(value.requires_grad for value in parameters.values()):
            msg = (
                f"The {self.distribution_name} holds parameters that require gradients, but a "
                "fixed prior would not train them: subclass pyro_contrastive.Prior, and keep them "
                "there."
            )
            raise TypeError(msg)
        self._names = list(parameters)
        for name, value in parameters.items():
            self.register_buffer(f"_{name}", value.detach().clone())

    def forward(self, batch: CellBatch) -> dist.Distribution:
        """Return the distribution, expanded to ``[n_latent]``."""
        parameters = {n: getattr(self, f"_{n}") for n in self._names}
        return self._make(**parameters).expand([self.n_latent]).to_event(1)

    def arguments(self) -> dict[str, Any]:
        """Return the distribution's name and parameters, and the dimension."""
        parameters = {n: getattr(self, f"_{n}").tolist() for n in self._names}
        return {
            "distribution": self.distribution_name,
            "parameters": parameters,
            "n_latent": self.n_latent,
        }

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """Make the prior again from its written form.

        Raises
        ------
        ValueError
            If it names a distribution that a fixed prior cannot have.
        """
        name = arguments["distribution"]
        if name not in FIXED:
            msg = f"{name!a} is not one of the distributions of a fixed prior: {', '.join(FIXED)}"
            raise ValueError(msg)
        parameters = {n: torch.tensor(v) for n, v in arguments["parameters"].items()}
        return cls(FIXED[name](**parameters), arguments["n_latent"])


def _of_pyro(cls: type) -> Any:
    """Return Pyro's class for a distribution of Pyro or torch; ``None`` for any other class.

    The name does not suffice, since a user's class may have the name of one of theirs.
    """
    name = cls.__name__
    known = {getattr(dist, name, None), getattr(torch.distributions, name, None)}
    return getattr(dist, name, None) if cls in known else None


PriorLike = Prior | torch.distributions.Distribution
"""What a user may give as a prior."""


def half_line_or_line(distribution: torch.distributions.Distribution) -> constraints.Constraint:
    """Return the support of a univariate distribution, if the guide covers it.

    Raises
    ------
    TypeError
        If it is neither the real line nor its positive half (an interval or the integers, for
        example).
    """
    support: Any = distribution.support
    if support == constraints.real:
        return constraints.real
    lower = getattr(support, "lower_bound", None)
    if lower == 0 and not support.is_discrete and not hasattr(support, "upper_bound"):
        return constraints.positive
    msg = (
        f"A {type(distribution).__name__} has the support {support}, but the guide covers only the "
        "real line (with normals) and its positive half (with log-normals). For another support, "
        "override the guide."
    )
    raise TypeError(msg)


class StandardNormal(FixedPrior):
    r"""The standard normal prior of contrastiveVI, :math:`z \sim N(0, I)` (Weinberger et al. 2023).

    Parameters
    ----------
    n_latent
        Dimension of the latent variable.
    """

    def __init__(self, n_latent: int) -> None:
        super().__init__(dist.Normal(torch.tensor(0.0), torch.tensor(1.0)), n_latent)

    def arguments(self) -> dict[str, Any]:
        """Return the dimension only."""
        return {"n_latent": self.n_latent}

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """Make the prior again from its written form."""
        return cls(**arguments)


def as_prior(prior: object, n_latent: int, keyword: str) -> Prior:
    """Turn what a user gives as a prior into a :class:`Prior`.

    Parameters
    ----------
    prior
        A `Prior`; a torch or pyro distribution (wrapped in :class:`FixedPrior`); or ``None`` for
        the standard normal.
    n_latent
        Dimension of the latent variable.
    keyword
        Name of the argument, for the error message.

    Raises
    ------
    TypeError
        If `prior` is anything else.
    ValueError
        If its attribute ``n_latent`` says that it was made for another dimension.
    """
    if prior is None:
        return StandardNormal(n_latent)
    if isinstance(prior, Prior):
        check_component(prior, Prior, keyword)
        made_for = getattr(prior, "n_latent", n_latent)
        if made_for != n_latent:
            msg = (
                f"{keyword}: this {type(prior).__name__} was made for {made_for} dimensions, and "
                f"the model has {n_latent} there. Make it with {n_latent}, or give the model "
                "n_background_latent= or n_salient_latent= to match."
            )
            raise ValueError(msg)
        return prior
    if not isinstance(prior, torch.distributions.Distribution):
        is_class = isinstance(prior, type)
        what = f"the class {prior.__name__}" if isinstance(prior, type) else type(prior).__name__
        msg = (
            f"{keyword} must be a torch or pyro distribution or a pyro_contrastive.Prior, not "
            f"{what}{': give an object of it' if is_class else ''}."
        )
        raise TypeError(msg)
    return FixedPrior(prior, n_latent)
