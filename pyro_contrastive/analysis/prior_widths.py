"""How wide the priors of the latents of cells are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_contrastive.analysis.refined_posterior import Sites
from pyro_contrastive.analysis.runs import draw_posterior, run_model
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.vae import ContrastiveVAE

__all__ = ["prior_widths"]


def prior_widths(vae: ContrastiveVAE, batch: CellBatch, sites: Sites) -> Tensor:
    """Return the standard deviations of the priors of some cells, ``[cells, latents]``.

    Of the logarithm where a latent is positive. A prior whose variance is not known in closed form
    (a flow) or infinite is taken to be as wide as a standard normal.

    Parameters
    ----------
    vae
        The model.
    batch
        The cells.
    sites
        The latents.
    """
    nodes = run_model(vae, batch, draw_posterior(vae, batch)).nodes
    widths = []
    for site, width in sites.widths.items():
        variance = _variance(nodes[site]["fn"], is_positive=site in sites.positive)
        if variance is None:
            variance = torch.ones_like(nodes[site]["value"])
        widths.append(variance.expand(1, len(batch), width)[0])
    found = torch.cat(widths, -1).sqrt()
    return torch.where(found.isfinite(), found, 1.0)


def _variance(prior: Any, *, is_positive: bool) -> Tensor | None:
    """Variance of a latent, or of the logarithm of a positive one; ``None`` if it is not known.

    The latter is that of the log-normal with the same mean and variance.
    """
    try:
        variance: Tensor = prior.variance
        return (variance / prior.mean.square()).log1p() if is_positive else variance
    except NotImplementedError:
        return None
