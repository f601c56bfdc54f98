"""Negative binomial log-densities that stay accurate in single precision.

The textbook formula subtracts log-gamma values of the order of ``t log t`` (``t`` the inverse
dispersion), which loses every digit in float32 once ``t`` is large. The densities here are split
instead:

* A zero count needs no gamma function. Its log-probability ``A = -t log1p(m / t)`` and the
  gradient are evaluated at every entry, in the dtype of the parameters, by short formulas that are
  accurate as long as the mean is small, as it is wherever most counts are zero.
* The few other entries, non-zero counts and zeros where the mean is large, are gathered, evaluated
  in float64 and scattered back. For small counts ``lgamma(x + t) - lgamma(t)`` is a short sum of
  logarithms, taken from a table. Others use the saddle-point form of the density (C. Loader, "Fast
  and accurate computation of binomial probabilities", 2000), in which no two large numbers are
  subtracted::

      log NB(x; m, t) = -D - log(2 pi x (x + t) / t) / 2 + S(x + t) - S(t) - S(x)
      D = x log(x / m) - (x + t) log((x + t) / (m + t))

  where ``D`` is the deviance term and ``S(z)`` the remainder of Stirling's formula for
  ``lgamma(z)``.

The gradient is in closed form, because automatic differentiation would subtract large numbers where
these formulas do not. Non-zero entries are found at run time, which `torch.func.vmap` and tracing
do not support. On a GPU nothing is gathered: both cases are evaluated at every entry, in float64.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Size, Tensor
from torch.autograd.function import BackwardCFunction, Function, FunctionCtx
from torch.nn.functional import softplus

from pyro_contrastive._tools.operators import define
from pyro_contrastive.density.nonzero import is_gathered, nonzero_of
from pyro_contrastive.density.nonzero_counts import (
    IDENTITY_FROM,
    Terms,
    log1p_minus,
    nonzero_counts_terms,
    nonzero_terms,
    not_structural,
    put,
)

__all__ = ["count_terms", "log_density"]

_LOG2_E = 1 / math.log(2)
# Up to this mean the short formulas for a zero count lose less than 1e-6 in single precision.
_LARGE_MEAN = 4.0


def _small_mean_terms(m: Tensor, t: Tensor, p: Tensor | None) -> Terms:
    """Evaluate a zero count at every entry; accurate as long as ``m <= _LARGE_MEAN``.

    In place, since most of the time is memory traffic. A bounded mean bounds ``A`` from below, so
    that the probability of a zero cannot underflow.
    """
    u = m / t
    log1p = u.log1p()
    shrink = (1 + u).reciprocal_()  # t / (t + m)
    d_t = u.mul_(shrink).sub_(log1p)
    d_m = shrink.neg_()
    if p is None:
        return Terms(log1p.mul_(-t), d_m, d_t)
    q = p.sigmoid()  # probability of a structural zero
    weight = log1p.mul_(t * -_LOG2_E).exp2_()  # e^A as a power of 2, the quicker function in torch
    weight.addcmul_(q, weight, value=-1)  # (1 - q) e^A, a zero of the negative binomial
    value = weight + q
    weight.div_(value)  # probability that a zero comes from the negative binomial
    d_p = torch.add(weight, q, out=q).sub_(1).neg_()
    return Terms(value.log_(), d_m.mul_(weight), d_t.mul_(weight), d_p)


def _zero_terms(m: Tensor, t: Tensor, p: Tensor | None) -> Terms:
    """Evaluate zero counts at any mean."""
    y = m / t
    log1p = y.log1p()
    not_m = (1 + y).reciprocal_()  # t / (t + m)
    y.mul_(not_m).neg_()  # -m / (t + m)
    d_t = log1p_minus(y, torch.add(log1p, y).neg_())
    a, d_m = log1p.mul_(-t), not_m.neg_()
    if p is None:
        return Terms(a, d_m, d_t)
    logit = torch.sub(a, p, out=y)  # log-odds of a zero being the negative binomial's
    q = -p
    value = softplus(logit, 1, IDENTITY_FROM).sub_(softplus(q, 1, IDENTITY_FROM))
    shortfall = a.expm1_().mul_(q.sigmoid_())  # probability of a zero, minus one
    # The difference of softplus cancels where the probability is nearly one; log1p is inaccurate
    # where it is nearly zero.
    likely = shortfall > -1 / 2
    torch.where(likely, torch.log1p(shortfall, out=q), value, out=value)
    weight = torch.sigmoid(logit, out=q)
    # sigmoid(-p) - sigmoid(a - p), factored so that it does not cancel.
    d_p = logit.neg_().sigmoid_().mul_(shortfall).neg_()
    return Terms(value, d_m.mul_(weight), d_t.mul_(weight), d_p)


def _take(tensor: Tensor, shape: Size, flat: Tensor, last: Tensor) -> Tensor:
    """Gather the entries of ``tensor`` broadcast to ``shape`` at ``flat``.

    ``last`` are the positions along the last axis.
    """
    # The two common cases first: one number per entry, or one per gene.
    if tensor.shape == shape:
        return tensor.reshape(-1).index_select(0, flat)
    if tensor.numel() == tensor.shape[-1:].numel() > 1:
        return tensor.reshape(-1).index_select(0, last)
    # Otherwise turn positions in the full shape into positions in the smaller one, axis by axis.
    index, stride, block = torch.zeros_like(flat), 1, 1
    for size, full in zip(reversed(tensor.shape), reversed(shape), strict=False):
        if size > 1:
            index += flat // block % full * stride
        stride, block = stride * size, block * full
    return tensor.reshape(-1).index_select(0, index)


def _large_mean_zeros(value: Tensor, mean: Tensor) -> Tensor:
    """Return the flat positions of zero counts where the mean is large."""
    n_last = mean.shape[-1] if mean.dim() else 1
    mean, value = mean.reshape(-1, max(n_last, 1)), value.reshape(-1, max(n_last, 1))
    if not mean.numel():
        return torch.zeros(0, dtype=torch.long, device=mean.device)
    # Few genes have large means anywhere, and a maximum is found faster than positions.
    columns = (mean.amax(0) > _LARGE_MEAN).nonzero().squeeze(-1)
    inside, zero = mean.index_select(1, columns) > _LARGE_MEAN, value.index_select(1, columns) == 0
    row, column = (inside & zero).nonzero().unbind(1)
    return row * n_last + columns.index_select(0, column)


def count_terms(value: Tensor, m: Tensor, t: Tensor, p: Tensor | None) -> Terms:
    """Log-probability and gradient at every entry of ``value``, which has the full shape."""
    return Terms(*torch.ops.pyro_contrastive.count_terms(value, m, t, p))


def _count_terms(value: Tensor, m: Tensor, t: Tensor, p: Tensor | None) -> list[Tensor]:
    found = _gathered if is_gathered(value) else _everywhere
    return [term for term in found(value, m, t, p) if term is not None]


def _everywhere(value: Tensor, m: Tensor, t: Tensor, p: Tensor | None) -> Terms:
    """Evaluate both cases at every entry, in float64."""
    mean, dispersion = m.double().expand(value.shape), t.double()
    logits = None if p is None else p.double().expand(value.shape)
    zeros = _zero_terms(mean, dispersion, logits)
    counts = nonzero_terms(value.double(), mean, dispersion)
    if logits is not None:
        counts = not_structural(counts, logits)
    is_zero, largest = value == 0, torch.finfo(m.dtype).max
    terms: list[Any] = [
        # (Clamped for the reason given in `put`.)
        None if a is None or b is None else torch.where(is_zero, a, b.clamp_(max=largest)).to(m)
        for a, b in zip(zeros, counts, strict=True)
    ]
    return Terms(*terms)


def _gathered(value: Tensor, m: Tensor, t: Tensor, p: Tensor | None) -> Terms:
    """Evaluate a zero at every entry, then replace it where the costlier formulas are needed."""
    shape = value.shape
    mean = m.expand(shape).contiguous()
    # Results have the memory layout of the mean: contiguous, since `put` writes to flat positions.
    logits = None if p is None else p.expand(shape).contiguous()
    zeros = _large_mean_zeros(value, mean)
    dense = _small_mean_terms(mean, t, logits)

    def gather(tensor: Tensor | None, flat: Tensor, last: Tensor) -> Any:
        return None if tensor is None else _take(tensor, shape, flat, last)

    def double(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.double()

    if zeros.numel():
        last = zeros % shape[-1] if shape else zeros
        large = (double(gather(a, zeros, last)) for a in (mean, t, p))
        put(_zero_terms(*large), zeros, dense)
    counts = nonzero_of(value)
    shared = shape and t.numel() == t.shape[-1:].numel() == shape[-1]
    per_gene = t.reshape(-1).double() if shared else None
    rate, dispersion, logit = (gather(a, counts.flat, counts.last) for a in (mean, t, p))
    found = nonzero_counts_terms(counts, rate.double(), dispersion.double(), logit, per_gene)
    put(found, counts.flat, dense)
    return dense


# A torch operator: a recorded step replays operators, and the number of entries that are
# gathered differs between mini-batches.
define("count_terms(Tensor value, Tensor m, Tensor t, Tensor? p) -> Tensor[]", _count_terms)


def _textbook(x: Tensor, m: Tensor, t: Tensor, p: Tensor | None) -> Tensor:
    """Textbook log-density in float64: less accurate, but can be differentiated repeatedly."""
    x, m, t = x.double(), m.double(), t.double()
    zero = -t * torch.log1p(m / t)
    rate = torch.where(x > 0, m, 1)  # a zero mean at a zero count would be 0 * log(0)
    positive = x * torch.log(rate / (t + rate)) + (x + t).lgamma() - t.lgamma() - (x + 1).lgamma()
    if p is None:
        return zero + torch.where(x > 0, positive, 0)
    p = p.double()
    softplus_p = softplus(-p, 1, IDENTITY_FROM)
    zero_inflated = softplus(zero - p, 1, IDENTITY_FROM) - softplus_p
    return torch.where(x > 0, zero + positive - p - softplus_p, zero_inflated)


class _LogDensity(Function):
    """Log-probability of counts with a closed form first derivative."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, m: Tensor, t: Tensor, p: Tensor | None) -> Tensor:
        log_prob, *partials = count_terms(value, m, t, p)
        ctx.save_for_backward(value, m, t, p, *partials)  # type: ignore[arg-type]
        return log_prob

    @staticmethod
    def backward(ctx: BackwardCFunction, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        value, parameters, partials = saved[0], saved[1:4], saved[4:]
        needed: tuple[bool, ...] = ctx.needs_input_grad[1:]
        wanted = [i for i in range(3) if needed[i]]
        gradients: list[Tensor | None] = [None] * 4  # none for the counts
        if torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated
            inputs, log_prob = [parameters[i] for i in wanted], _textbook(value, *parameters)
            found = torch.autograd.grad(log_prob, inputs, grad.double(), create_graph=True)
        else:
            # Parameters may be smaller than the counts: broadcasting turns into a sum.
            found = tuple((grad * partials[i]).sum_to_size(parameters[i].shape) for i in wanted)
        for i, gradient in zip(wanted, found, strict=True):
            gradients[i + 1] = gradient
        return tuple(gradients)


def log_density(value: Tensor, m: Tensor, t: Tensor, p: Tensor | None = None) -> Tensor:
    """Log-probability of counts, with or without zero inflation.

    Parameters
    ----------
    value
        Counts, of the shape of the result.
    m, t
        Mean and inverse dispersion, broadcastable to `value`, of one floating point dtype.
    p
        Logit of the probability of a structural zero, likewise; no zero inflation if None.

    Returns
    -------
    Tensor
        Natural log-probabilities, in the dtype of the parameters.
    """
    log_prob: Tensor = _LogDensity.apply(value, m, t, p)  # type: ignore[no-untyped-call]
    return log_prob
