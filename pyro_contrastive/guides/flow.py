"""A posterior bent by a normalizing flow."""

from __future__ import annotations

from typing import cast

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, ExpTransform, Transform, constraints

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.guide import ContrastiveGuide, Moments
from pyro_contrastive.guides.summary import (
    n_summary,
    network,
    summary_of,
    without_salient,
)
from pyro_contrastive.model import CELLS
from pyro_contrastive.outline import ModelOutline

BOUND = 2.0
"""Bound of the log scale of a layer, so that no odd draw early in training can overflow."""


class _Coupling(Transform):
    """y = x where `kept`; elsewhere y = shift + exp(log scale) x, both functions of the kept x.

    One pass of the network in either direction. (Pyro's AffineCoupling keeps its last log scale,
    and returns it for another input.)

    Parameters
    ----------
    network
        Returns shifts and raw log scales of all dimensions.
    context
        What it sees besides x, ``[..., cells, context]``.
    kept
        Dimensions that stay, and are seen by the network, 1 or 0: ``[latents]``.
    there
        Dimensions that may change or be seen, 1 or 0: ``[cells, latents]``.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, network: nn.Module, context: Tensor, kept: Tensor, there: Tensor) -> None:
        super().__init__(cache_size=0)
        self.network, self.context = network, context
        self.seen, self.changed = kept * there, (1 - kept) * there

    def _shift_and_log_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        context = self.context.expand(*x.shape[:-1], self.context.shape[-1])
        shift, raw = self.network(torch.cat([x * self.seen, context], dim=-1)).chunk(2, dim=-1)
        return shift * self.changed, BOUND * torch.tanh(raw / BOUND) * self.changed

    def _call(self, x: Tensor) -> Tensor:
        shift, log_scale = self._shift_and_log_scale(x)
        return shift + log_scale.exp() * x

    def _inverse(self, y: Tensor) -> Tensor:
        shift, log_scale = self._shift_and_log_scale(y)
        return (y - shift) * (-log_scale).exp()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._shift_and_log_scale(x)[1].sum(-1)


class FlowGuide(ContrastiveGuide):
    r"""Posterior of any shape: a normal bent by coupling layers (Dinh et al., ICLR 2017).

    .. math:: z = m_z + D_z f_z(\epsilon_z; x), \quad
        s = m_s + D_s f_s(\epsilon_s; x, z), \quad \log l = m_l + D_l f_l(\epsilon_l; x, z, s)

    with :math:`\epsilon` standard normal, m and D means and standard deviations from the encoders,
    and each f a composition of `n_flows` layers that scale and shift one half of the dimensions by
    functions of the other half, of the encoders' output and of the latents drawn before, as in the
    inverse autoregressive flow of Kingma et al. (NeurIPS 2016). It starts close to the mean-field
    guide. No latent depends on s of a background cell, which is not part of its posterior.

    :meth:`marginals` have no closed form, and are estimated from draws.

    Parameters
    ----------
    n_flows
        Number of layers, at least 1. Default 4: each half is changed twice.
    n_hidden
        Width of the hidden layer of each. Default 64.
    """

    def __init__(self, n_flows: int = 4, n_hidden: int = 64) -> None:
        super().__init__()
        check_arguments(locals(), "FlowGuide")
        self.n_flows = n_flows
        self.n_hidden = n_hidden

    def build(self, outline: ModelOutline) -> None:
        """Make the encoders and the networks of the flow."""
        super().build(outline)
        self.n_latents = outline.n_latents
        self.flows = nn.ModuleDict()
        n_context = n_summary(outline)
        for site, n in self.n_latents.items():
            # In one dimension there is no other half, and layers would add up to one.
            n_layers = self.n_flows if n > 1 else 1
            layers = [network(n + n_context, self.n_hidden, 2 * n) for _ in range(n_layers)]
            self.flows[site] = nn.ModuleList(layers)
            n_context += n

    def draw(self, moments: dict[str, Moments], batch: CellBatch) -> None:
        """Draw z, s and, if latent, the library size, each given those before it."""
        self.shared()
        moments = {site: moments[site] for site in self.n_latents}  # in this order
        used = self.used_salient(batch)
        there = self._dependent(moments, batch)
        covariates = self.covariates(batch, like=self.z_encoder.mean.weight)
        of_posterior = summary_of(without_salient(moments, batch), covariates)
        drawn: list[Tensor] = []
        with pyro.plate(CELLS, len(batch), dim=-1):
            for site, (mean, variance) in moments.items():
                context, bent = of_posterior, there[site]
                if site == "s":  # bent in all cells, so that background cells have the same map
                    context = summary_of(moments, covariates)
                    bent = torch.ones_like(bent) if used is None else used.expand_as(bent)
                q = self._flow(site, _joined(site, context, drawn, batch), (mean, variance), bent)
                value = self._sample(site, q, (mean, variance))
                standard = (self._real(site, value, there[site]) - mean) / variance.sqrt()
                drawn.append(torch.where(there[site], standard, 0.0))

    def _flow(
        self, site: str, context: Tensor, moments: Moments, bent: Tensor
    ) -> dist.TransformedDistribution:
        """Return the distribution of a latent, of which the dimensions `bent` may be changed."""
        mean, variance = moments
        mean = mean.expand(*context.shape[:-1], mean.shape[-1])
        noise = dist.Normal(torch.zeros_like(mean), torch.ones_like(mean)).to_event(1)
        dimensions = torch.arange(mean.shape[-1], device=mean.device)
        transforms: list[Transform] = []
        for i, layer in enumerate(cast(nn.ModuleList, self.flows[site])):
            # 1s and 0s; the only dimension, if there is one, is changed by the only layer.
            kept = (dimensions % 2 != i % 2).to(mean)
            transforms.append(_Coupling(layer, context, kept, bent.to(mean)))
        transforms.append(AffineTransform(mean, variance.sqrt(), event_dim=1))
        if self.is_positive(site):
            transforms.append(ExpTransform())
        return dist.TransformedDistribution(noise, transforms)

    def has_closed_marginal(self, site: str) -> bool:
        """Return false: a flow has no moments in closed form."""
        return False


def _joined(site: str, summary: Tensor, drawn: list[Tensor], batch: CellBatch) -> Tensor:
    """Join what a flow sees of a cell: the summary, and the latents drawn before."""
    if not drawn:
        return summary
    summary = summary.expand(*drawn[0].shape[:-1], summary.shape[-1])
    joined = torch.cat([summary, *drawn], dim=-1)
    if site != "s":
        return joined
    # Penalties on s of background cells are not to change their z.
    return torch.where(batch.is_target.unsqueeze(-1), joined, joined.detach())
