"""Where refinement starts: the latents of the guide, and a normal like its posterior."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from pyro_contrastive._tools.site_moments import sampled_moments
from pyro_contrastive._tools.torch_tools import evaluating, seeded
from pyro_contrastive.analysis.natural_gradient import State
from pyro_contrastive.analysis.refined_posterior import Sites
from pyro_contrastive.analysis.runs import draw_posterior, run_model
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.guide import Moments
from pyro_contrastive.model import CELLS
from pyro_contrastive.sites import is_local
from pyro_contrastive.vae import ContrastiveVAE

__all__ = ["guide_moments", "guide_normal", "has_density", "widened"]

START_WIDTH = 0.7
"""Smallest standard deviation at the start, in those of the prior. With 0.5 more cells simulated
from the prior have a Pareto k above 0.7; with 1, a few in a hundred are not there in 30 steps."""


def guide_moments(vae: ContrastiveVAE, batch: CellBatch) -> dict[str, Moments]:
    """Mean and variance of each latent under the guide, of the log of a positive one.

    Each ``[cells, latents]``, by site.
    """
    with evaluating(vae), seeded(0):
        return _moments(vae, batch, _sites(vae, batch))


def guide_normal(vae: ContrastiveVAE, batch: CellBatch) -> tuple[Sites, State]:
    """Return the latents, and a normal with the guide's mean and covariance."""
    sites = _sites(vae, batch)
    never = torch.zeros_like(batch.is_target)
    if tuple(sites.widths) == vae.guide.sites:
        return sites, State(*vae.guide.normal(batch), never)
    moments = _moments(vae, batch, sites)
    mean = torch.cat([moments[site][0] for site in sites.widths], -1)
    sd = torch.cat([moments[site][1] for site in sites.widths], -1).sqrt()
    return sites, State(mean, torch.diag_embed(sd), never)


def widened(start: State, widths: Tensor, free: Tensor) -> State:
    """Widen normals that are narrow beside the prior where the latents are `free`.

    Correlations stay as they are. `widths` are standard deviations of the prior.
    """
    sd = start.factor.square().sum(-1).sqrt()
    ratio = (START_WIDTH * widths / sd).clamp(min=1.0)
    wider = torch.where(free, ratio, 1.0)
    return start._replace(factor=wider.unsqueeze(-1) * start.factor)


def _sites(vae: ContrastiveVAE, batch: CellBatch) -> Sites:
    """Return the latents of the guide, by running it and the model."""
    drawn = draw_posterior(vae, batch)
    widths = {}
    for name, site in drawn.nodes.items():
        if not has_density(site):
            continue
        if site["value"].shape[:-1] != (1, len(batch)):
            msg = (
                f"Refinement needs latents of shape [cells, latents]; the site {name!r} of the "
                f"guide has a value of shape {list(site['value'].shape[1:])}."
            )
            raise TypeError(msg)
        widths[name] = site["value"].shape[-1]
    model = run_model(vae, batch, drawn).nodes
    positive = {name for name in widths if _is_positive(name, model[name]["fn"].support)}
    return Sites(widths, frozenset(positive))


def _is_positive(name: str, support: Any) -> bool:
    """Tell a positive latent from a real one, refusing any other."""
    # Of independent dimensions, and of the components of a mixture.
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support in {constraints.real, constraints.real_vector}:
        return False
    if support in {constraints.positive, constraints.nonnegative}:  # the latter: a gamma's
        return True
    msg = (
        f"Refinement needs latents that are real or positive numbers; the prior of the site "
        f"{name!r} has the support {support}."
    )
    raise TypeError(msg)


def _moments(vae: ContrastiveVAE, batch: CellBatch, sites: Sites) -> dict[str, Moments]:
    """Mean and variance of each latent under the guide, of the log of a positive one."""
    found = vae.guide.marginals(batch)
    if found.keys() >= sites.widths.keys():
        return found
    # A model of the user's own may have further latents.
    return sampled_moments(vae.guide, batch, CELLS, sites.positive)


def has_density(site: dict[str, Any]) -> bool:
    """Whether a site of a trace has a density for each cell."""
    return site["type"] == "sample" and not site_is_subsample(site) and is_local(site)
