"""Log-probabilities of the gathered non-zero counts, in double precision; see `density.counts`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_contrastive.density.nonzero import SMALL_COUNT, NonZero

# Stirling's formula is good to 2e-14 from here on with five terms of its remainder,
# whose coefficients are B_2k / (2k (2k - 1)); NIST DLMF, equation 5.11.1.
_STIRLING_FROM = 10.0
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)
# torch's softplus turns into the identity above 20 by default, which costs 2e-9.
IDENTITY_FROM = 80.0
# Up to here the truncation of the series of log1p(y) - y is below the rounding of the difference.
_SMALL = 1e-3


class Terms(NamedTuple):
    """Log-probabilities and their derivatives with respect to each parameter."""

    value: Tensor
    d_mean: Tensor
    d_inverse_dispersion: Tensor
    d_logits: Tensor | None = None  # without zero inflation


def log1p_minus(y: Tensor, difference: Tensor) -> Tensor:
    """Return ``log1p(y) - y``, given as `difference`, without its cancellation at small ``y``.

    In double precision.
    """
    series = (y * 0.2).sub_(0.25).mul_(y).add_(1 / 3).mul_(y).sub_(0.5).mul_(y).mul_(y)
    return torch.where((y > -_SMALL) & (y < _SMALL), series, difference, out=series)


def _stirling_remainder(z: Tensor) -> Tensor:
    """Return ``S(z) = lgamma(z) - (z - 1/2) log z + z - log(2 pi) / 2``."""
    low, inverse = z.clamp(max=_STIRLING_FROM), z.clamp(min=_STIRLING_FROM).reciprocal_()
    exact = low.lgamma() - (low - 0.5) * low.log() + low - 0.5 * math.log(2 * math.pi)
    return torch.where(z < _STIRLING_FROM, exact, _odd_polynomial(inverse, _STIRLING))


def _stirling_slope(z: Tensor) -> Tensor:
    """Return the derivative of ``S``, ``digamma(z) - log z + 1 / (2 z)``."""
    low, inverse = z.clamp(max=_STIRLING_FROM), z.clamp(min=_STIRLING_FROM).reciprocal_()
    exact = low.digamma() - low.log() + 0.5 / low
    slopes = [-(2 * k + 1) * c for k, c in enumerate(_STIRLING)]
    return torch.where(z < _STIRLING_FROM, exact, _odd_polynomial(inverse, slopes).mul_(inverse))


def _odd_polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Evaluate ``c0 x + c1 x^3 + c2 x^5 + ...``."""
    square, total = x * x, torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total.mul_(square).add_(coefficient)
    return total.mul_(x)


def nonzero_terms(x: Tensor, m: Tensor, t: Tensor) -> Terms:
    """Evaluate non-zero counts of any size in float64, without zero inflation."""
    s_t, ds_t = _stirling_remainder(t), _stirling_slope(t)
    total, excess = x + t, x - m
    y = excess / (t + m)
    log1p_y = y.log1p()
    # The deviance, grouped so that nothing cancels for t much larger or much smaller than x and m.
    deviance = x * torch.log1p(excess / m * (t / total)) - t * log1p_y
    value = -deviance - 0.5 * (2 * math.pi * x * (total / t)).log()
    value += _stirling_remainder(total) - s_t - _stirling_remainder(x)
    d_t = log1p_minus(y, log1p_y - y) + 0.5 * x / t / total + _stirling_slope(total) - ds_t
    return Terms(value, t / m * y, d_t)


class _SmallCounts(NamedTuple):
    """``lgamma(k + t) - lgamma(t) - lgamma(k + 1)`` and its derivative, ``[counts, genes]``.

    For k up to `SMALL_COUNT` these are short sums, which all cells can look up.
    """

    value: Tensor
    slope: Tensor

    @classmethod
    def of(cls, t: Tensor) -> Self:
        k = torch.arange(SMALL_COUNT, dtype=t.dtype, device=t.device).unsqueeze(-1)
        shifted = t + k
        none = torch.zeros_like(t).unsqueeze(0)
        value = torch.cat([none, (shifted / (k + 1)).log_()]).cumsum(0)
        return cls(value, torch.cat([none, shifted.reciprocal_()]).cumsum(0))

    def terms(self, counts: NonZero, m: Tensor, t: Tensor) -> Terms:
        """Evaluate counts of 1 to `SMALL_COUNT` in float64.

        For counts this small, float64 has enough digits for the terms that cancel.
        """
        u = m / t
        log1p, grown = u.log1p(), 1 + u
        value = self.value.view(-1).index_select(0, counts.entry)
        value.addcmul_(counts.x, u.div_(grown).log_()).addcmul_(t, log1p, value=-1)
        excess = counts.x - m
        d_t = self.slope.view(-1).index_select(0, counts.entry)
        d_t.sub_(log1p).sub_(excess / (t + m))
        return Terms(value, excess.div_(grown.mul_(m)), d_t)


def nonzero_counts_terms(
    counts: NonZero, m: Tensor, t: Tensor, p: Tensor | None, per_gene: Tensor | None
) -> Terms:
    """Evaluate the gathered non-zero counts in float64.

    ``per_gene`` is the inverse dispersion of every gene, if it is the same in all cells.
    """
    x = counts.x
    # A table of `SMALL_COUNT` entries per gene pays only if there are more counts to look up.
    if per_gene is not None and per_gene.numel() * SMALL_COUNT < 2 * x.numel():
        terms = _SmallCounts.of(per_gene).terms(counts, m, t)
        if counts.large.numel():
            at = counts.large
            x, m, t = x[at], m[at], t[at]
            put(nonzero_terms(x, m, t), at, terms)
    else:
        terms = nonzero_terms(x, m, t)
    return terms if p is None else not_structural(terms, p)


def not_structural(terms: Terms, p: Tensor) -> Terms:
    """Add zero inflation to the terms of non-zero counts, in place."""
    # The logits may stay in single precision, since nothing cancels here.
    value = terms.value.sub_(softplus(p, 1, IDENTITY_FROM))
    return terms._replace(value=value, d_logits=p.sigmoid().neg_())


def put(found: Terms, flat: Tensor, into: Terms) -> None:
    """Write terms to the flat positions of others."""
    for target, source in zip(into, found, strict=True):
        if target is not None and source is not None:
            # At a mean of zero the slope is infinite, and would turn a masked entry into 0 * inf.
            finite = source.clamp_(max=torch.finfo(target.dtype).max)
            # (scatter_ is four times as fast as index_copy_.)
            target.view(-1).scatter_(0, flat, finite.to(target.dtype))
