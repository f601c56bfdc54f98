"""Sites of model and guide as an ELBO sees them: their weights, and their parts of the loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.model import CELLS, SALIENT

Weighting = Literal["population", "proportional"]
RECONSTRUCTION = "reconstruction_loss"
"""Name of the negative log-likelihood among the parts of the negative ELBO, as in scvi-tools."""
KL = "kl_"
"""Prefix of the name of a latent site, for its KL divergence among the parts of the negative
ELBO."""


def cell_weights(
    batch: CellBatch, weighting: Weighting, sizes: tuple[int, int] | None = None
) -> Tensor:
    """Weight of each cell's ELBO in the loss, shape ``[cells]``.

    Parameters
    ----------
    batch
        The cells.
    weighting
        ``"population"``: the mean over background cells plus the mean over target cells, as in
        scvi-tools, however many there are. ``"proportional"``: every cell counts the same. Both sum
        to 2 when both populations are present: losses are per background/target pair.
    sizes
        Numbers of background and of target cells over which the means are taken, if the batch is
        only a part of them; default: those of the batch.
    """
    is_target = batch.is_target
    if weighting == "proportional":
        n_cells = len(batch) if sizes is None else sum(sizes)
        return torch.full(is_target.shape, 2.0 / n_cells, device=is_target.device)
    n_background: Tensor | int
    n_target: Tensor | int
    if sizes is None:  # kept as tensors, which avoids waiting for a GPU
        n_target = is_target.sum()
        n_background = len(batch) - n_target
    else:
        n_background, n_target = sizes
    per_target, per_background = 1.0 / n_target, 1.0 / n_background
    return torch.where(is_target, per_target, per_background)  # inf only where not selected


def is_local(site: dict[str, Any]) -> bool:
    """Return whether a site is in the plate of cells, rather than shared by all cells."""
    return any(frame.name == CELLS for frame in site["cond_indep_stack"])


class WeightedSites(Messenger):
    """Effect handler that scales the log-densities of a model or guide, site by site.

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

    The decoder does not see it, so its posterior is its prior, and its KL divergence would be 0 at
    best. For background cells q(s | x) is determined by penalties, and carries no evidence about
    the data.

    Parameters
    ----------
    is_target
        Mask of the target cells, ``[cells]``.
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
        Use the closed-form KL divergence where torch has one; otherwise, or where it has none,
        log q - log p of the draw.

    Returns
    -------
    For an observed site the negative log-likelihood, for a latent one its KL divergence: per cell,
    ``[..., cells]``, for sites in the plate of cells (0 where a site is masked, as
    :class:`SalientOfTargets` does).
    """
    losses = {}
    for name, site in _random_sites(model_trace).items():
        if site["is_observed"]:
            term = -site["unscaled_log_prob"]
        else:
            term = _kl_divergence(site, guide_trace.nodes[name], analytic=analytic)
        losses[name] = scale_and_mask(term, mask=site["mask"])
    return losses


def observed_sites(model_trace: Trace) -> list[str]:
    """Return the names of the sites at which a model has observed data, in its order."""
    return [name for name, site in _random_sites(model_trace).items() if site["is_observed"]]


def log_likelihood(model_trace: Trace, sites: Iterable[str] | None = None) -> Tensor:
    """Return the log-density of a trace's values at some sites, ``[..., cells]``.

    Parameters
    ----------
    model_trace
        Trace of a model.
    sites
        Names of sites in the plate of cells. Default: those at which the model has observed data.
    """
    names = observed_sites(model_trace) if sites is None else sites
    nodes = [model_trace.nodes[name] for name in names]
    terms: list[Tensor] = [node["fn"].log_prob(node["value"]) for node in nodes]
    return sum(terms[1:], terms[0])


def part_names(model_trace: Trace) -> dict[str, str]:
    """Name the part of the negative ELBO that each site of a model contributes.

    The part depends on whether the site is observed, not on its name.

    Returns
    -------
    By site: ``kl_<site>`` for a latent one; for an observed one ``reconstruction_loss``, or
    ``reconstruction_loss_<site>`` if the model observes several.
    """
    n_observed = len(observed_sites(model_trace))
    names = {}
    for name, site in _random_sites(model_trace).items():
        if not site["is_observed"]:
            names[name] = f"{KL}{name}"
        else:
            names[name] = RECONSTRUCTION if n_observed == 1 else f"{RECONSTRUCTION}_{name}"
    return names


def _random_sites(model_trace: Trace) -> dict[str, dict[str, Any]]:
    """Return the sites with a density: ``pyro.deterministic`` has none."""
    return {
        name: site
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample" and not site["infer"].get("_deterministic")
    }


def _kl_divergence(model_site: Any, guide_site: Any, *, analytic: bool) -> Tensor:
    if analytic:
        try:
            return torch.distributions.kl_divergence(guide_site["fn"], model_site["fn"])
        except NotImplementedError:  # no closed form for this pair: use the draw, as Pyro does
            pass
    return guide_site["unscaled_log_prob"] - model_site["unscaled_log_prob"]
