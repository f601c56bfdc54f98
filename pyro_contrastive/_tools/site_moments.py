"""Mean and variance of the latents of a guide, from its distributions or from its draws."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import ExpandedDistribution, LogNormal, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution

from pyro_contrastive._tools.torch_tools import seeded

N_DRAWS = 200
"""Draws per cell: a mean is known to 7 % of the latent's standard deviation."""
SHRINKAGE = 0.1
"""Share by which correlations found from draws are shrunk towards 0."""
_WRAPPERS = (Independent, ExpandedDistribution, MaskedDistribution)


def moments_of(distribution: Any, *, of_log: bool) -> tuple[Tensor, Tensor] | None:
    """Return mean and variance of a distribution; ``None`` if they have no closed form.

    Parameters
    ----------
    distribution
        Event shape ``[latents]``. Wrappers that plates and handlers put around it are looked
        through.
    of_log
        Return those of the logarithm. They are known for a log-normal distribution.
    """
    while isinstance(distribution, _WRAPPERS):
        distribution = distribution.base_dist
    if isinstance(distribution, LogNormal) and of_log:
        distribution = distribution.base_dist
    elif of_log or type(distribution) is TransformedDistribution:
        return None
    try:
        return distribution.mean, distribution.variance
    except NotImplementedError:
        return None


def sampled_moments(
    program: Callable[[Any], Any], batch: Any, plate: str, positive: Collection[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of every latent that a program draws for its cells, by seeded draws.

    Where a site's distribution has moments in closed form, its noise is not sampled: by the law of
    total variance only what its moments depend on is. So the result is exact for sites that depend
    on no other, and the global random state is unchanged.

    Parameters
    ----------
    program
        A guide.
    batch
        Its argument, the cells.
    plate
        Name of the plate of cells.
    positive
        Sites whose logarithms' moments are asked for.

    Returns
    -------
    By site, each ``[cells, latents]``.
    """
    found = {}
    for name, site in _drawn(program, batch, plate):
        of_log = name in positive
        value = site["value"].log() if of_log else site["value"]
        known = moments_of(site["fn"], of_log=of_log)
        mean, variance = (value, torch.zeros_like(value)) if known is None else known
        mean, variance = mean.expand_as(value), variance.expand_as(value)
        found[name] = mean.mean(0), variance.mean(0) + mean.var(0, correction=0)
    return found


def sampled_mean(program: Callable[[Any], Any], batch: Any, plate: str, site: str) -> Tensor:
    """Mean of a latent as it is drawn, ``[cells, latents]``; see :func:`sampled_moments`."""
    found = dict(_drawn(program, batch, plate))[site]
    known = moments_of(found["fn"], of_log=False)
    value: Tensor = found["value"] if known is None else known[0].expand_as(found["value"])
    return value.mean(0)


def sampled_correlations(
    program: Callable[[Any], Any],
    batch: Any,
    plate: str,
    positive: Collection[str],
    there: Tensor,
) -> Tensor:
    """Cholesky factor of the correlations of all latents, by seeded draws.

    Parameters
    ----------
    program, batch, plate, positive
        As for :func:`sampled_moments`.
    there
        Latents that may be correlated, boolean ``[cells, latents]``, in the order of the sites.

    Returns
    -------
    ``[cells, latents, latents]``. Correlations are shrunk by a tenth, so that there is a factor
    however many latents there are.
    """
    values = [
        site["value"].log() if name in positive else site["value"]
        for name, site in _drawn(program, batch, plate)
    ]
    draws = torch.cat(values, -1)  # [draws, cells, latents]
    standard = (draws - draws.mean(0)) / draws.std(0, correction=0)
    correlations = torch.einsum("dcl,dcm->clm", standard, standard) / len(draws)
    both = there.unsqueeze(-1) & there.unsqueeze(-2)
    kept = torch.where(both, (1 - SHRINKAGE) * correlations, 0.0)
    identity = torch.eye(there.shape[-1], device=there.device, dtype=torch.bool)
    return torch.linalg.cholesky(torch.where(identity, 1.0, kept))


def _drawn(
    program: Callable[[Any], Any], batch: Any, plate: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the sites in the plate of cells, with values ``[draws, cells, latents]``."""
    with seeded(0):
        many = pyro.plate("samples", N_DRAWS, dim=-2)(program)
        trace = poutine.trace(many).get_trace(batch)
    for name in trace.stochastic_nodes:
        site = trace.nodes[name]
        if any(frame.name == plate for frame in site["cond_indep_stack"]):
            yield name, site
