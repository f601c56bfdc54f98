"""Negative binomial count distributions that stay accurate in single precision.

The textbook formula subtracts log-gamma values of the order of ``t log t`` (``t`` the inverse
dispersion), which loses every digit in float32 once ``t`` is large. The densities here are split
instead:

* A zero count needs no gamma function: its log-probability ``A = -t log1p(m / t)`` is evaluated
  at every entry, in the dtype of the parameters.
* The few non-zero counts are gathered, evaluated in float64 and scattered back. They use
  the saddle-point form of the density (C. Loader, "Fast and accurate computation of binomial
  probabilities", 2000), in which no two large numbers are subtracted::

      log NB(x; m, t) = -D - log(2 pi x (x + t) / t) / 2 + S(x + t) - S(t) - S(x)
      D = x log(x / m) - (x + t) log((x + t) / (m + t))

  where ``D`` is the deviance term and ``S(z)`` what Stirling's formula leaves of ``lgamma(z)``.

Every piece whose automatic derivative would cancel is a `torch.autograd.Function` with a closed
form backward pass, itself written in differentiable operations, so second derivatives work too.
The non-zero entries are found at run time, which `torch.func.vmap` and tracing do not support.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor
from torch.autograd.function import BackwardCFunction, Function, FunctionCtx
from torch.nn.functional import logsigmoid

__all__ = ["NegativeBinomial", "ZeroInflatedNegativeBinomial"]

# Coefficients of z^-1, z^-3, ... in S(z): B_2k / (2k (2k - 1)); NIST DLMF, equation 5.11.1.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)
# From here on the five terms above are exact to 2e-14.
_STIRLING_FROM = 10.0
# Above this rate a Poisson draw could overflow the 64-bit integer that torch draws it in.
_MAX_POISSON_RATE = 1e18


def _log1p_minus(y: Tensor, one_plus_y: Tensor) -> Tensor:
    """Return ``log(1 + y) - y``, accurate at small ``y`` and near ``y = -1``."""
    # log1p(y) = 2 atanh(w): its odd series leaves the linear term out of the subtraction.
    w = y / (2 + y)
    w2 = w * w
    terms = 3 if y.dtype == torch.float32 else 6
    tail = torch.full_like(w2, 1 / (2 * terms + 1))
    for k in range(terms - 1, 0, -1):
        tail = tail * w2 + 1 / (2 * k + 1)
    series = 2 * w2 * (w * tail - 1 / (1 - w))
    return torch.where(y.abs() < 0.2, series, one_plus_y.log() - y)


class _LogZero(Function):
    """``A(m, t) = -t log1p(m / t)``, the negative binomial log-probability of a zero."""

    @staticmethod
    def forward(ctx: FunctionCtx, m: Tensor, t: Tensor) -> Tensor:
        ctx.save_for_backward(m, t)
        return -t * torch.log1p(m / t)

    @staticmethod
    def backward(ctx: BackwardCFunction, grad: Tensor) -> tuple[Tensor, Tensor]:
        m, t = ctx.saved_tensors
        ratio = t / (t + m)
        return -grad * ratio, grad * _log1p_minus(-m / (t + m), ratio)


class _LogZeroInflated(Function):
    """``log(pi + (1 - pi) exp(A))`` with ``pi = sigmoid(p)``, for ``A <= 0``."""

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, p: Tensor) -> Tensor:
        ctx.save_for_backward(a, p)
        shortfall = torch.sigmoid(-p) * torch.expm1(a)
        # The difference underflows last but cancels where the probability is nearly one.
        return torch.where(
            shortfall > -0.5, shortfall.log1p(), logsigmoid(p) - logsigmoid(p - a)
        )

    @staticmethod
    def backward(ctx: BackwardCFunction, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, p = ctx.saved_tensors
        # The second is sigmoid(-p) - sigmoid(a - p), factored so that it does not cancel.
        return (
            grad * torch.sigmoid(a - p),
            -grad * torch.expm1(a) * torch.sigmoid(-p) * torch.sigmoid(p - a),
        )


class _Deviance(Function):
    """``D(x, m, t) = x log(x / m) - (x + t) log((x + t) / (m + t))`` for ``x > 0``."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, m: Tensor, t: Tensor) -> Tensor:
        ctx.save_for_backward(x, m, t)
        # Regrouped so that neither t >> x, m nor t << x, m cancels.
        excess = x - m
        first = x * torch.log1p(excess / m * (t / (x + t)))
        return first - t * torch.log1p(excess / (t + m))

    @staticmethod
    def backward(ctx: BackwardCFunction, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        x, m, t = ctx.saved_tensors
        y = (x - m) / (t + m)
        return None, -grad * (t / m) * y, -grad * _log1p_minus(y, (x + t) / (t + m))


class _StirlingRemainder(Function):
    """``S(z) = lgamma(z) - (z - 1/2) log z + z - log(2 pi) / 2``."""

    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        low, inverse = z.clamp(max=_STIRLING_FROM), 1 / z.clamp(min=_STIRLING_FROM)
        exact = low.lgamma() - (low - 0.5) * low.log() + low - 0.5 * math.log(2 * math.pi)
        return torch.where(
            z < _STIRLING_FROM, exact, inverse * _polynomial(inverse**2, _STIRLING)
        )

    @staticmethod
    def backward(ctx: BackwardCFunction, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        # Clamped, the branch not taken is finite and so are its derivatives.
        low, inverse2 = z.clamp(max=_STIRLING_FROM), z.clamp(min=_STIRLING_FROM) ** -2
        exact = low.digamma() - low.log() + 0.5 / low
        slopes = [-(2 * k + 1) * c for k, c in enumerate(_STIRLING)]
        series = inverse2 * _polynomial(inverse2, slopes)
        return grad * torch.where(z < _STIRLING_FROM, exact, series)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Evaluate a polynomial, constant term first, by Horner's rule."""
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def _take(tensor: Tensor, shape: Size, flat: Tensor) -> Tensor:
    """Gather, in float64, the entries of ``tensor`` broadcast to ``shape`` at ``flat``."""
    # Indexing the tensor before it is broadcast keeps a per-gene gradient per gene.
    index, stride, block = torch.zeros_like(flat), 1, 1
    if tensor.shape == shape:
        index = flat
    else:
        for size, full in zip(reversed(tensor.shape), reversed(shape), strict=False):
            if size > 1:
                index = index + flat // block % full * stride
            stride, block = stride * size, block * full
    return tensor.reshape(-1).index_select(0, index).double()
