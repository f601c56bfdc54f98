"""Sites of the programs as an ELBO sees them: their weights, and their parts of the loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_contrastive.model import CELLS, SALIENT


def is_local(site: dict[str, Any]) -> bool:
    """Tell whether a site lies in the plate of cells, rather than being shared by all of them."""
    return any(frame.name == CELLS for frame in site["cond_indep_stack"])


class WeightedSites(Messenger):
    """Effect handler that scales the log-densities of a model or guide.

    Parameters
    ----------
    cell_weights
        Weight of each cell, ``[cells]``: multiplies the sites inside the plate of cells.
    global_weight
        Multiplies the sites outside it (parameters with a prior), which are shared by all cells.
    kl_weight
        Multiplies the sites named in `annealed`.
    annealed
        Names of the sites whose KL is annealed.
    """

    def __init__(
        self,
        cell_weights: Tensor,
        global_weight: Tensor | float,
        kl_weight: Tensor | float,
        annealed: Iterable[str],
    ) -> None:
        super().__init__()
        self.cell_weights = cell_weights
        self.global_weight = global_weight
        self.kl_weight = kl_weight
        self.annealed = frozenset(annealed)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        weight = self.cell_weights if is_local(msg) else self.global_weight
        if msg["name"] in self.annealed:
            weight = weight * self.kl_weight
        msg["scale"] = msg["scale"] * weight


class SalientOfTargets(Messenger):
    """Effect handler that leaves the salient latent of background cells out of an ELBO.

    The decoder does not see it, so its posterior is its prior; q(s | x) of background cells, on
    the other hand, is where penalties pin it. Neither is evidence about the data.

    Parameters
    ----------
    is_target
        Which cells are target cells, ``[cells]``.
    """

    def __init__(self, is_target: Tensor) -> None:
        super().__init__()
        self.is_target = is_target

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] == SALIENT:
            msg["mask"] = self.is_target if msg["mask"] is None else msg["mask"] & self.is_target


def site_losses(model_trace: Trace, guide_trace: Trace, *, analytic: bool) -> dict[str, Tensor]:
    """Return each site's unweighted part of the negative ELBO.

    Parameters
    ----------
    model_trace, guide_trace
        Traces whose log-densities have been computed (as in Pyro's ELBOs).
    analytic
        Use the closed-form KL where torch knows one; else, and where there is none, the draw's
        log q - log p.

    Returns
    -------
    For ``x`` the negative log-likelihood, for a latent its KL divergence: per cell ``[..., cells]``
    (0 where a site is masked, as :class:`SalientOfTargets` does) for sites in the plate of cells.
    """
    losses = {}
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample" or site["infer"].get("_deterministic"):
            continue
        if site["is_observed"]:
            term = -site["unscaled_log_prob"]
        else:
            term = _kl_divergence(site, guide_trace.nodes[name], analytic=analytic)
        losses[name] = scale_and_mask(term, mask=site["mask"])
    return losses


def _kl_divergence(model_site: Any, guide_site: Any, *, analytic: bool) -> Tensor:
    if analytic:
        try:
            return torch.distributions.kl_divergence(guide_site["fn"], model_site["fn"])
        except NotImplementedError:  # no closed form for this pair: one draw, as Pyro does
            pass
    return guide_site["unscaled_log_prob"] - model_site["unscaled_log_prob"]
