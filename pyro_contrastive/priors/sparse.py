"""A salient prior with learned scales, and the number of dimensions in use."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.priors.base import Prior


class SparseSalient(Prior):
    r"""A normal with a learned scale per dimension (automatic relevance determination).

    .. math:: s_{nk} \sim N(0, \tau_k^2), \quad \tau_k \ge \tau_{\min}

    with :math:`\tau` learned by maximising the ELBO (empirical Bayes, as in Bishop 1999, "Bayesian
    PCA", there for the loadings). A dimension is never exactly 0; how many nats the guide spends on
    it shows whether it is used. ``model.get_latent_usage()`` of a ``ContrastiveVI`` reports this,
    and :meth:`nats` and :meth:`active` do for a plain ``ContrastiveVAE``. Dimensions that the data
    do not need fall to a few tenths of a nat and to scales below 1.

    How many are needed depends on the decoder. With one that is linear in the latents
    (``n_layers_decoder=0``), counts simulated from a log-linear model leave as many dimensions
    active as there are true factors (in eight of nine runs; the other used one more). A nonlinear
    decoder may use a further dimension. This shows only once training has converged, which takes
    long with the default optimiser (Adam with ``eps=0.01``, as in scvi-tools): try
    ``plan_kwargs={"lr": 5e-3, "eps": 1e-8}``.

    Parameters
    ----------
    n_latent
        Dimension of the latent variable.
    min_scale
        Lower bound of the scales, which keeps the density finite.
    """

    def __init__(self, n_latent: int, min_scale: float = 0.01) -> None:
        super().__init__()
        check_arguments(locals(), "SparseSalient")
        self.n_latent = n_latent
        self.min_scale = min_scale
        self.log_excess = nn.Parameter(torch.full((n_latent,), 1.0 - min_scale).log())

    @property
    def scales(self) -> Tensor:
        """The scales tau, ``[n_latent]``; 1 before training."""
        return self.min_scale + self.log_excess.exp()

    def forward(self, batch: CellBatch) -> dist.Distribution:
        """Return the normal, the same for every cell: event ``[n_latent]``."""
        scales = self.scales
        return dist.Normal(torch.zeros_like(scales), scales).to_event(1)

    @torch.no_grad()
    def nats(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Return the guide's mean KL divergence from the prior, ``[n_latent]``, in nats per cell.

        Parameters
        ----------
        mean, variance
            Mean and variance of q(s | x) of the target cells, ``[cells, n_latent]``: the entry
            ``"s"`` of ``vae.guide.encode(batch)``.
        """
        posterior, prior = dist.Normal(mean, variance.sqrt()), dist.Normal(0.0 * mean, self.scales)
        return torch.distributions.kl_divergence(posterior, prior).mean(0)

    def active(self, mean: Tensor, variance: Tensor, threshold: float = 0.5) -> list[int]:
        """Return the dimensions on which the guide spends more than `threshold` nats per cell.

        The threshold is a convention: check the values of :meth:`nats` for a gap.
        """
        used = self.nats(mean, variance) > threshold
        return [k for k, is_used in enumerate(used.tolist()) if is_used]
