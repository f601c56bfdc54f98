"""The log-density of Poisson counts, accurate in single precision.

Its terms are of the size of ``x log x`` and cancel to a few nats, so that non-zero counts are
evaluated in double precision. For a zero it is minus the rate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from pyro_contrastive._tools.operators import define
from pyro_contrastive.density.nonzero import is_gathered, nonzero_of


def poisson_log_density(value: Tensor, rate: Tensor) -> Tensor:
    """Natural log-probability of counts, in the dtype and shape of the rate.

    Parameters
    ----------
    value, rate
        Counts and their means, of one shape.
    """
    log_prob: Tensor = _LogDensity.apply(value, rate)  # type: ignore[no-untyped-call]
    return log_prob


def _log_prob(value: Tensor, rate: Tensor) -> Tensor:
    if not is_gathered(value):
        return _of_counts(value.double(), rate.double()).to(rate.dtype)
    log_prob, counts = torch.neg(rate).contiguous(), nonzero_of(value)
    rates = rate.reshape(-1).index_select(0, counts.flat).double()
    log_prob.view(-1).scatter_(0, counts.flat, _of_counts(counts.x, rates).to(rate.dtype))
    return log_prob


def _of_counts(x: Tensor, rate: Tensor) -> Tensor:
    return torch.xlogy(x, rate) - rate - (x + 1).lgamma()


# A torch operator: a recorded step replays operators, and the number of non-zero counts
# differs between mini-batches.
define("poisson_log_prob(Tensor value, Tensor rate) -> Tensor", _log_prob)


class _LogDensity(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, rate: Tensor) -> Tensor:
        ctx.save_for_backward(value, rate)
        log_prob: Tensor = torch.ops.pyro_contrastive.poisson_log_prob(value, rate)
        return log_prob

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        value, rate = ctx.saved_tensors
        # The difference of two close numbers is exact; x / rate - 1 would not be.
        is_zero = value == 0
        slope = (value.to(rate.dtype) - rate) / torch.where(is_zero, 1.0, rate)
        # An infinite slope, as at a tiny rate, would turn a masked entry into 0 * inf.
        slope = slope.clamp(max=torch.finfo(rate.dtype).max)
        return None, grad * torch.where(is_zero, -1.0, slope)
