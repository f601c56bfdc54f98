"""Poisson counts, with or without zero inflation, and counts seen only as zero or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution, constraints
from torch import Size, Tensor

from pyro_contrastive.density.distributions import CountDistribution
from pyro_contrastive.density.heads import SCALE
from pyro_contrastive.density.poisson import poisson_log_density
from pyro_contrastive.likelihoods.base import DROPOUT, Likelihood

__all__ = ["Bernoulli", "Poisson", "ZeroInflatedPoisson"]

LOG_2 = math.log(2)


def _rate(heads: Mapping[str, Tensor], library: Tensor) -> Tensor:
    """Library x scale, kept above 0 in cells without counts, because log(0) has no gradient."""
    rate = library * heads[SCALE]
    return rate.clamp(min=torch.finfo(rate.dtype).tiny)


class _ExactPoisson(dist.Poisson):
    """Poisson with a log-density that is accurate in single precision.

    torch's would be off by 0.1 at a count of 100,000.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Natural log-probability of counts, in the dtype of the rate."""
        if self._validate_args:
            self._validate_sample(value)
        rate = self.rate
        if value.shape != rate.shape:  # else keep the tensor, whose non-zero entries may be known
            value, rate = torch.broadcast_tensors(value, rate)  # type: ignore[no-untyped-call]
        return poisson_log_density(value, rate)


class _ExactZeroInflatedPoisson(CountDistribution):
    """Zero-inflated Poisson by rate and logits, with the log-density of `_ExactPoisson`."""

    arg_constraints: ClassVar = {"rate": constraints.nonnegative, "zi_logits": constraints.real}
    zi_logits: Tensor

    def __init__(self, rate: Tensor, zi_logits: Tensor, validate_args: bool | None = None) -> None:
        super().__init__({"rate": rate, "zi_logits": zi_logits}, validate_args)

    @property
    def mean(self) -> Tensor:
        """Expected count, of shape `batch_shape`."""
        return (torch.sigmoid(-self.zi_logits) * self.rate).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance, of shape `batch_shape`."""
        return self.mean * (1 + self.rate * torch.sigmoid(self.zi_logits))

    def log_prob(self, value: Tensor) -> Tensor:
        """Natural log-probability of counts, in the dtype of the rate."""
        if self._validate_args:
            self._validate_sample(value)
        exact = dist.ZeroInflatedDistribution(
            _ExactPoisson(self.rate, validate_args=False),
            gate_logits=self.zi_logits.double(),
            validate_args=False,
        )
        return exact.log_prob(value.double()).to(self.rate.dtype)

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draw counts, without gradient."""
        shape = self._extended_shape(Size(sample_shape))
        with torch.no_grad():
            kept = torch.bernoulli(torch.sigmoid(-self.zi_logits).expand(shape))
            return torch.poisson(self.rate.expand(shape)) * kept


class _SeenPoisson(CountDistribution):
    """Whether a Poisson count with this rate is above 0: 1 with probability 1 - exp(-rate).

    A Bernoulli distribution with a complementary log-log link. Computed from a probability or a
    logit in single precision, log-probabilities near 0 would be lost to rounding.
    """

    support: ClassVar = constraints.boolean
    arg_constraints: ClassVar = {"rate": constraints.positive}

    def __init__(self, rate: Tensor, validate_args: bool | None = None) -> None:
        super().__init__({"rate": rate}, validate_args)

    @property
    def mean(self) -> Tensor:
        """Probability of a 1, of shape `batch_shape`."""
        return -torch.expm1(-self.rate).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance, of shape `batch_shape`."""
        return self.mean * torch.exp(-self.rate)

    def log_prob(self, value: Tensor) -> Tensor:
        """Natural log-probability of zeros and ones, in the dtype of the rate."""
        if self._validate_args:
            self._validate_sample(value)
        # log(1 - exp(-m)) by the form that does not cancel (Maechler, "Accurately computing
        # log(1 - exp(-|a|))", 2012). The clamp keeps the gradient of the unused form finite, since
        # torch.where multiplies it by 0.
        few = torch.log(-torch.expm1(-self.rate))
        many = torch.log1p(-torch.exp(-self.rate.clamp(min=LOG_2)))
        seen = torch.where(self.rate > LOG_2, many, few)
        return torch.where(value > 0, seen, -self.rate)

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draw zeros and ones, without gradient."""
        shape = self._extended_shape(Size(sample_shape))
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(shape))


class Poisson(Likelihood):
    r"""Poisson counts.

    .. math:: x_{ng} \sim \mathrm{Poisson}(l_n \rho_{ng})

    For counts without overdispersion beyond that which the latents explain: given the latents, a
    gene's variance equals its mean. Not the distribution ``pyro.distributions.Poisson``.
    """

    heads: tuple[str, ...] = (SCALE,)

    def forward(self, heads: Mapping[str, Tensor], library: Tensor) -> Distribution:
        """Return the Poisson with mean library x scale."""
        return _ExactPoisson(_rate(heads, library)).to_event(1)


class ZeroInflatedPoisson(Likelihood):
    r"""Zero-inflated Poisson counts.

    With probability :math:`\mathrm{sigmoid}(\pi_{ng})` a count is a structural zero. Otherwise it
    is drawn as in :class:`Poisson`. The head ``"dropout"`` gives the logits :math:`\pi`.

    The observed library size counts only what structural zeros have left. The means before zero
    inflation sum to it and so come out too small, and a Poisson has no dispersion that could absorb
    the difference. With many structural zeros, make the library size latent
    (``use_observed_lib_size=False``).
    """

    heads: tuple[str, ...] = (SCALE, DROPOUT)

    def forward(self, heads: Mapping[str, Tensor], library: Tensor) -> Distribution:
        """Return the zero-inflated Poisson with mean library x scale before dropout."""
        return _ExactZeroInflatedPoisson(_rate(heads, library), heads[DROPOUT]).to_event(1)


class Bernoulli(Likelihood):
    r"""Zeros and ones, such as chromatin accessibility: Poisson counts seen only as "any".

    .. math:: P(x_{ng} = 1) = 1 - \exp(-l_n \rho_{ng})

    (a complementary log-log link). Scale, library size and rate mean the same as for counts: the
    rate is the expected number of fragments, and the data say whether there was any.

    The observed library size of a cell is its number of ones. That is less than its number of
    fragments, since two in one place count once. This is good enough where few features are open
    (up to about a tenth, as with peaks or bins). Where many are open, no scale on the simplex
    reaches the observed number of ones, and the library size should be latent, with a prior that
    allows for more fragments: about -n log(1 - f) if a fraction f of n features is open::

        ContrastiveVI(
            adata,
            likelihood=Bernoulli(),
            use_observed_lib_size=False,
            library_prior=dist.LogNormal(math.log(-n * math.log(1 - f)), 1.0),
        )
    """

    heads: tuple[str, ...] = (SCALE,)
    support: constraints.Constraint = constraints.boolean

    def forward(self, heads: Mapping[str, Tensor], library: Tensor) -> Distribution:
        """Return the distribution of "any fragment", expected number library x scale."""
        return _SeenPoisson(_rate(heads, library)).to_event(1)
