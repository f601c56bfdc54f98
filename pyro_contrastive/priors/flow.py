"""A normalizing flow as prior of a latent variable."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from pyro_contrastive._tools.arguments import Whole, check_arguments
from pyro_contrastive._tools.threads import one_thread
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.priors.base import Prior


class _MaskedAffine(Transform):
    """noise -> z with z_k = mean_k(z_<k) + exp(log_scale_k(z_<k)) noise_k; the inverse is one pass.

    Pyro's AffineAutoregressive caches its last input and output. So it returns stale densities
    after an optimiser step, and densities without gradient after a draw under ``no_grad``. It
    cannot be copied after use either, and inverts in float32 only. This one has no cache.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, network: AutoRegressiveNN) -> None:
        super().__init__(cache_size=0)
        self.network = network

    def _moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.network(z)
        # A soft bound, exp(-3) to exp(3), so that no odd draw early in training can overflow.
        return mean, 3.0 * torch.tanh(raw / 3.0)

    def _call(self, noise: Tensor) -> Tensor:
        z = torch.zeros_like(noise)
        for k in self.network.permutation.tolist():  # each needs the ones before it
            mean, log_scale = self._moments(z)
            drawn = mean[..., k] + log_scale[..., k].exp() * noise[..., k]
            z = torch.cat([z[..., :k], drawn.unsqueeze(-1), z[..., k + 1 :]], dim=-1)
        return z

    def _inverse(self, z: Tensor) -> Tensor:
        mean, log_scale = self._moments(z)
        return (z - mean) * (-log_scale).exp()

    def log_abs_det_jacobian(self, noise: Tensor, z: Tensor) -> Tensor:
        return self._moments(z)[1].sum(-1)


class NormalizingFlowPrior(Prior):
    r"""A standard normal bent by masked autoregressive flows (Papamakarios et al. 2017).

    .. math:: \epsilon \sim N(0, I), \quad
        z_k = \mu_k(z_{<k}) + e^{\alpha_k(z_{<k})} \epsilon_k, \quad
        \log p(z) = \log N(\epsilon; 0, I) - \sum_k \alpha_k(z_{<k})

    applied `n_flows` times, the order of the dimensions reversed from one to the next (a learned
    flow as prior of a VAE: Chen et al. 2017, "Variational lossy autoencoder"). :math:`\mu, \alpha`
    come from a masked network (``pyro.nn.AutoRegressiveNN``). Evaluating the density takes one pass
    per flow, drawing one per flow and dimension. Starts close to a standard normal.

    Parameters
    ----------
    n_latent
        Dimension of the latent variable, at least 2; in one dimension the flow is just a normal.
    n_flows
        Number of flows.
    n_hidden
        Width of the one hidden layer of each flow, at least `n_latent`.
    """

    @one_thread()  # weights are drawn
    def __init__(self, n_latent: int, n_flows: int = 2, n_hidden: int = 32) -> None:
        super().__init__()
        check_arguments(locals(), "NormalizingFlowPrior", n_latent=Whole(2))
        check_arguments(locals(), "NormalizingFlowPrior", n_hidden=Whole(n_latent))
        self.n_latent = n_latent
        self.n_flows = n_flows
        self.n_hidden = n_hidden
        order = torch.arange(n_latent)
        self.networks = nn.ModuleList(
            AutoRegressiveNN(n_latent, [n_hidden], permutation=order.flip(0) if i % 2 else order)
            for i in range(n_flows)
        )
        with torch.no_grad():
            for network in self.networks:
                for parameter in network.layers[-1].parameters():  # type: ignore[union-attr, index]  # torch types submodules as Tensor | Module
                    parameter.mul_(0.1)
        self.register_buffer("_zero", torch.zeros(()))  # carries dtype and device

    def forward(self, batch: CellBatch) -> dist.Distribution:
        """Return the flow's distribution, the same for every cell: event ``[n_latent]``."""
        zero: Tensor = self._zero  # type: ignore[assignment]  # torch types buffers as Tensor | Module
        base = dist.Normal(zero, zero + 1.0).expand([self.n_latent]).to_event(1)
        # torch takes the KL divergence of two TransformedDistributions with equal transforms to be
        # that of their bases. Transforms made anew each time never compare equal.
        return dist.TransformedDistribution(base, [_MaskedAffine(n) for n in self.networks])
