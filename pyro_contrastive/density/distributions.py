"""Count distributions of single-cell RNA-seq: negative binomial, with or without zero inflation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from pyro_contrastive.density.counts import log_density

__all__ = ["NegativeBinomialDistribution", "ZeroInflatedNegativeBinomialDistribution"]

# Above this rate a Poisson draw could overflow the 64-bit integer that torch draws it in.
_MAX_POISSON_RATE = 1e18


def _sample(m: Tensor, t: Tensor, shape: Size) -> Tensor:
    """Draw negative binomial counts as Poisson counts with Gamma distributed rates."""
    # Scaled after drawing, so that a mean of 0 needs no Gamma with an infinite rate.
    gamma = torch._standard_gamma(t.expand(shape))
    return torch.poisson((gamma / t * m).clamp(max=_MAX_POISSON_RATE))


def _common_shape(*args: Tensor | Size) -> Size:
    """Broadcast tensors and shapes against each other."""
    shapes = [arg.shape if isinstance(arg, Tensor) else arg for arg in args]
    shape: Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return shape


def _as_tensors(*args: Tensor | float) -> list[Tensor]:
    """Give all parameters one floating point dtype, without broadcasting them."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    dtypes = [tensor.dtype for tensor in tensors if tensor.dtype.is_floating_point]
    dtype = functools.reduce(torch.promote_types, dtypes) if dtypes else torch.get_default_dtype()
    device = tensors[0].device if tensors else None
    return [
        arg.to(dtype) if isinstance(arg, Tensor) else torch.tensor(arg, dtype=dtype, device=device)
        for arg in args
    ]


class CountDistribution(TorchDistribution):
    """Base of the distributions of counts; the keys of ``arg_constraints`` are its parameters."""

    support: ClassVar = constraints.nonnegative_integer
    has_rsample: ClassVar = False
    rate: Tensor
    inverse_dispersion: Tensor
    zi_logits: Tensor | None = None

    def __init__(self, parameters: dict[str, Tensor | float], validate_args: bool | None) -> None:
        tensors = _as_tensors(*parameters.values())
        for name, tensor in zip(parameters, tensors, strict=True):
            setattr(self, name, tensor)
        super().__init__(_common_shape(*tensors), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Self | None = None) -> Self:
        """Return the same distribution with a larger batch shape, sharing its parameters.

        Parameters
        ----------
        batch_shape
            Shape that the present batch shape broadcasts to.
        """
        new: Self = self._get_checked_instance(type(self), _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name))
        shape = Size(batch_shape)
        if _common_shape(self.batch_shape, shape) != shape:
            raise RuntimeError(f"Cannot expand batch shape {self.batch_shape} to {shape}")
        TorchDistribution.__init__(new, shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Natural log-probability (nats) of counts.

        Parameters
        ----------
        value
            Counts, of a shape broadcastable with `batch_shape`.

        Returns
        -------
        Tensor
            Log-probabilities, of the broadcast shape and the dtype of the parameters.
        """
        if self._validate_args:
            self._validate_sample(value)
        shape = _common_shape(value, self.batch_shape)
        if value.shape != shape:
            value = value.expand(shape)
        return log_density(value, self.rate, self.inverse_dispersion, self.zi_logits)

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draw counts, without gradient.

        Parameters
        ----------
        sample_shape
            Shape of the independent draws.

        Returns
        -------
        Tensor
            Counts of shape ``sample_shape + batch_shape``, in the dtype of the parameters.
        """
        shape = self._extended_shape(Size(sample_shape))
        with torch.no_grad():
            counts = _sample(self.rate, self.inverse_dispersion, shape)
            if self.zi_logits is None:
                return counts
            dropped = torch.bernoulli(torch.sigmoid(self.zi_logits).expand(shape))
            return counts.masked_fill(dropped.bool(), 0)


class NegativeBinomialDistribution(CountDistribution):
    """Negative binomial distribution with a mean and an inverse dispersion.

    With mean ``m`` and inverse dispersion ``t``, a count ``x`` has the log-probability::

        lgamma(x + t) - lgamma(t) - lgamma(x + 1) + t log(t / (t + m)) + x log(m / (t + m))

    and variance ``m + m**2 / t``: a Poisson whose rate is Gamma distributed with shape ``t`` and
    rate ``t / m`` (the "NB2" form; Hilbe, "Negative Binomial Regression", 2011).

    Parameters
    ----------
    mean
        Expected count ``m >= 0``, any shape. At 0 all mass sits at 0.
    inverse_dispersion
        Inverse dispersion ``t > 0``, shape broadcastable with `mean`, for instance ``[genes]``
        against ``[cells, genes]``. The larger it is, the closer to a Poisson.
    validate_args
        Whether to check the parameters now and the counts in `log_prob`; torch's default if None.

    Attributes
    ----------
    rate
        The argument `mean`, not broadcast.
    inverse_dispersion
        The argument, not broadcast.
    """

    arg_constraints: ClassVar = {
        "rate": constraints.nonnegative,
        "inverse_dispersion": constraints.positive,
    }

    def __init__(
        self,
        mean: Tensor | float,
        inverse_dispersion: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__({"rate": mean, "inverse_dispersion": inverse_dispersion}, validate_args)

    @property
    def mean(self) -> Tensor:
        """Expected count ``m``, of shape `batch_shape`."""
        return self.rate.expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of the count, ``m + m**2 / t``, of shape `batch_shape`."""
        return self.mean * (1 + self.rate / self.inverse_dispersion)


class ZeroInflatedNegativeBinomialDistribution(CountDistribution):
    """Negative binomial distribution with additional, structural zeros.

    A count is zero outright with probability ``pi = sigmoid(p)`` and otherwise follows the
    negative binomial with mean ``m`` and inverse dispersion ``t``. Its log-probability is, with
    ``A = t log(t / (t + m))``::

        x = 0:  softplus(A - p) - softplus(-p)
        x > 0:  -softplus(-p) - p + log NB(x; m, t)

    (the likelihood of scVI: Lopez et al., Nature Methods 15, 1053-1058, 2018).

    Parameters
    ----------
    mean
        Expected count ``m >= 0`` of the negative binomial component, any shape.
    inverse_dispersion
        Inverse dispersion ``t > 0``, shape broadcastable with `mean`.
    zi_logits
        Logit ``p`` of the probability of a structural zero, shape broadcastable with `mean`.
    validate_args
        Whether to check the parameters now and the counts in `log_prob`; torch's default if None.

    Attributes
    ----------
    rate
        The argument `mean`, not broadcast. The *property* `mean` is that of the counts,
        ``(1 - pi) m``.
    inverse_dispersion, zi_logits
        The arguments, not broadcast.
    """

    arg_constraints: ClassVar = {
        "rate": constraints.nonnegative,
        "inverse_dispersion": constraints.positive,
        "zi_logits": constraints.real,
    }
    zi_logits: Tensor

    def __init__(
        self,
        mean: Tensor | float,
        inverse_dispersion: Tensor | float,
        zi_logits: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        count = {"rate": mean, "inverse_dispersion": inverse_dispersion}
        super().__init__(count | {"zi_logits": zi_logits}, validate_args)

    @property
    def zi_probs(self) -> Tensor:
        """Probability ``pi`` of a structural zero, of shape `batch_shape`."""
        return torch.sigmoid(self.zi_logits).expand(self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """Expected count ``(1 - pi) m``, of shape `batch_shape`."""
        return (torch.sigmoid(-self.zi_logits) * self.rate).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance ``(1 - pi) m (1 + m (pi + 1 / t))``, of shape `batch_shape`."""
        return self.mean * (1 + self.rate * (self.zi_probs + 1 / self.inverse_dispersion))
