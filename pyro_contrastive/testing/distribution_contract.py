"""Checks of the distribution that a prior or a likelihood returns."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, biject_to, constraints

from pyro_contrastive.testing.contracts import fail, shape_of

N_DRAWS = 20_000
N_STANDARD_ERRORS = 8.0  # among the many moments compared, a few are 4 off by chance
N_IN_BALL = 1000  # draws: a standard error of 3 %
MAX_SHARE = 0.25  # of the largest twentieth of the summands; above it, the sum is too noisy
LOG_TOLERANCE = 0.2
MAX_GRID = 20_000
SUM_TOLERANCE = 5e-3


def check_shapes(component: Any, d: Any, n_event: int, batch_shapes: list[tuple[int, ...]]) -> None:
    """Require a Pyro distribution with event shape ``[n_event]`` and one of some batch shapes."""
    if not isinstance(d, dist.Distribution):
        fail(
            component,
            f"forward returned {type(d).__module__}.{type(d).__name__}, which pyro.sample does not "
            "take.",
            "Return a distribution of pyro.distributions, where torch's have the same names.",
        )
    event_shape, batch_shape = tuple(d.event_shape), tuple(d.batch_shape)
    if event_shape != (n_event,):
        fail(
            component,
            f"the distribution has event shape {shape_of(event_shape)} and batch shape "
            f"{shape_of(batch_shape)}; the event must be [{n_event}], one vector per cell, or Pyro "
            "would take its entries for cells.",
            "Declare the last axis to be the event: return d.to_event(1)."
            if not event_shape
            else "Check the number of dimensions it was made with.",
        )
    if batch_shape not in batch_shapes:
        expected = " or ".join(shape_of(s) for s in batch_shapes)
        fail(
            component,
            f"the distribution has batch shape {shape_of(batch_shape)}; expected {expected}.",
            "Index parameters by cell (self.mean[batch.condition]), let the cells be the last axis "
            "before the event, and do not change the axes to their left.",
        )


def check_draws(component: Any, d: Any) -> Tensor:
    """Require draws in the support with finite densities, and moments that agree with them."""
    draws: Tensor = d.sample((N_DRAWS,))
    expected = (N_DRAWS, *d.batch_shape, *d.event_shape)
    if tuple(draws.shape) != expected:
        fail(
            component,
            f"{N_DRAWS} draws have shape {shape_of(draws.shape)}, not {shape_of(expected)}.",
            "A distribution of your own must use the argument of sample(sample_shape).",
        )
    if not draws.isfinite().all():
        fail(component, "some draws are not finite.", "Bound the scale, or the rate.")
    if not d.support.check(draws).all():
        fail(
            component,
            f"some draws lie outside the distribution's own support, {d.support}.",
            "Correct `support` or `sample`.",
        )
    log_prob = d.log_prob(draws)
    if tuple(log_prob.shape) != expected[:-1]:
        fail(
            component,
            f"log_prob of draws has shape {shape_of(log_prob.shape)}, not "
            f"{shape_of(expected[:-1])}.",
            "Sum over the event (the last axis) and over no other axis.",
        )
    if not log_prob.isfinite().all():
        fail(
            component,
            "log_prob of its own draws is not finite.",
            "Compute on the log scale (logsumexp, softplus, logits=), and clamp arguments of log.",
        )
    _check_moments(component, d, draws)
    return draws


def _check_moments(component: Any, d: Any, draws: Tensor) -> None:
    draws = draws.double()
    deviation = (draws - draws.mean(0)).square()
    for name, each in (("mean", draws), ("variance", deviation)):
        try:
            stated = getattr(d, name)
        except (NotImplementedError, AttributeError):
            continue  # some distributions have none, and others do not implement them
        stated = stated.expand(draws.shape[1:]).double()
        error = each.std(0) / len(each) ** 0.5
        off = (each.mean(0) - stated).abs() > N_STANDARD_ERRORS * error + 0.01 * stated.abs() + 1e-6
        if (off & stated.isfinite()).any():
            at = tuple(off.nonzero()[0].tolist())
            fail(
                component,
                f"the {name} of {len(draws)} draws is {float(each.mean(0)[at]):.4g}, but the "
                f"distribution's .{name} says {float(stated[at]):.4g}: expectations would not "
                "agree with the draws.",
                f"Correct .{name} or sample; leave .{name} out if it has no closed form.",
            )


def check_density(component: Any, d: Any, draws: Tensor) -> None:
    """Require a density that integrates (or sums) to 1, where that can be checked."""
    if d.support.is_discrete:
        _check_sums_to_one(component, d)
    else:
        _check_integrates_to_one(component, d, draws)


def _check_sums_to_one(component: Any, d: Any) -> None:
    if not isinstance(d, Independent):
        return  # dependent entries, so that the sum would be over all vectors
    base = d.base_dist
    upper = 1.0
    if not isinstance(base.support, type(constraints.boolean)):
        # Far into the tail: also that of a strongly overdispersed gene.
        top = (base.mean + 60 * base.variance.sqrt()).max()
        upper = float(torch.nan_to_num(top, nan=MAX_GRID).clamp(max=MAX_GRID))
    grid = torch.arange(int(upper) + 1, dtype=draws_dtype(base))
    values = grid.reshape(-1, *[1] * len(base.batch_shape)).expand(-1, *base.batch_shape)
    total = base.log_prob(values).double().exp().sum(0)
    if ((total - 1).abs() > SUM_TOLERANCE).any():
        worst = float(total.flatten()[(total - 1).abs().argmax()])
        fail(
            component,
            f"probabilities of the counts 0 to {int(upper)} of a gene sum to {worst:.4g}, not 1: "
            "likelihoods of different parameters could not be compared.",
            "Keep every term of log_prob that depends on the parameters, normalisers included.",
        )


def draws_dtype(d: Any) -> torch.dtype:
    """Return the dtype of a distribution's draws."""
    dtype: torch.dtype = d.sample().dtype
    return dtype


def _check_integrates_to_one(component: Any, d: Any, draws: Tensor) -> None:
    r"""Compare the density with the draws: :math:`E_p[1_B / p]` is the volume of a ball B.

    B is around the draw of highest density, on the unconstrained scale, for which p includes a
    Jacobian. If p varies too much within B for this estimate, nothing is checked.
    """
    support = d.support
    # Since torch 2.5 mixtures have a special constraint, for which torch has no bijection.
    of_mixtures: Any = getattr(constraints, "MixtureSameFamilyConstraint", ())
    if isinstance(support, of_mixtures):
        support = support.base_constraint
    to_support = biject_to(support)
    y = to_support.inv(draws)
    log_p = d.log_prob(draws) + to_support.log_abs_det_jacobian(y, draws)  # [draws, ...]
    log_p, y = log_p.reshape(len(y), -1).double(), y.reshape(len(y), -1, y.shape[-1]).double()
    for cell in {0, y.shape[1] - 1}:
        here, density = y[:, cell], log_p[:, cell]
        spread = here.std(0).clamp(min=1e-12)
        distance = ((here - here[density.argmax()]) / spread).norm(dim=-1)
        inside = distance.argsort()[:N_IN_BALL]
        n = here.shape[-1]
        log_volume = n * float(distance[inside[-1]].log()) + float(spread.log().sum())
        log_volume += n / 2 * math.log(math.pi) - math.lgamma(n / 2 + 1)
        ratio = (-density[inside] - log_volume).exp().sort().values * N_IN_BALL / N_DRAWS
        total = float(ratio.mean())
        if float(ratio[-N_IN_BALL // 20 :].sum()) > MAX_SHARE * float(ratio.sum()):
            continue
        if abs(math.log(total)) > LOG_TOLERANCE:
            fail(
                component,
                f"its density does not belong to its draws: it integrates to about "
                f"{1 / total:.3g}, or the draws come from another distribution. The KL divergence "
                "would be wrong.",
                "Keep normalising terms (log scale, log det of the Jacobian), and let sample and "
                "log_prob use the same parameters.",
            )
