"""Salient priors for several treatments: a space for each, and perturbations that may fail."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_contrastive._tools.arguments import Whole, check_arguments
from pyro_contrastive._tools.threads import one_thread
from pyro_contrastive.cells import BACKGROUND, CellBatch
from pyro_contrastive.priors.base import Prior


class PrivateSalient(Prior):
    r"""A salient space of its own for every treatment, after multiGroupVI.

    .. math:: s_n = (0, \ldots, t_n, \ldots, 0), \quad t_n \sim N(0, I)

    with :math:`t_n` in the block of the cell's treatment (Weinberger, Lopez, Hütter & Regev, MLCB
    2022). The blocks of other treatments are exactly 0 in the decoder, and carry no information in
    the guide. An effect that two treatments share has no block of its own, and is pushed into z.

    Parameters
    ----------
    n_conditions
        Number of conditions, the background included.
    n_latent
        Dimension of s, all blocks together: a multiple of the number of treatments.

    Raises
    ------
    ValueError
        If `n_latent` is not such a multiple, or a size is too small.
    """

    def __init__(self, n_conditions: int, n_latent: int) -> None:
        super().__init__()
        check_arguments(locals(), "PrivateSalient", n_conditions=Whole(2))
        n_treatments = n_conditions - 1
        if n_latent % n_treatments:
            msg = (
                f"PrivateSalient: n_latent={n_latent} must be a multiple of the number of "
                f"treatments, {n_treatments}, so that each gets a block of the same size."
            )
            raise ValueError(msg)
        self.n_conditions = n_conditions
        self.n_latent = n_latent
        owner = torch.arange(n_latent) // (n_latent // n_treatments)
        self.register_buffer("owner", owner + BACKGROUND + 1)

    def forward(self, batch: CellBatch) -> dist.Distribution:
        """Return the standard normal of all blocks: event ``[n_latent]``."""
        # The buffer holds integers: it knows the device, but not the floating point dtype.
        like = self.get_buffer("owner")
        dtype = torch.get_default_dtype() if batch.x is None else batch.x.dtype
        zeros = torch.zeros(self.n_latent, dtype=dtype, device=like.device)
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)

    def used(self, batch: CellBatch) -> Tensor:
        """Tell which dimensions are the block of the cell's treatment; all for background cells.

        (Background cells have no salient latent, but penalties use the values that the encoder
        infers for them, in every block.)
        """
        condition = batch.condition.unsqueeze(-1)
        return (condition == self.get_buffer("owner")) | (condition == BACKGROUND)


class EscapingPerturbation(Prior):
    r"""A mean per treatment, whose effect some of its cells escape, after contrastiveVI+.

    .. math:: s_n \sim \pi_c N(m_c, I) + (1 - \pi_c) N(0, \tau^2 I), \quad c = c(n)

    contrastiveVI+ (Weinberger, Conrad & Ashuach, arXiv 2411.08072, 2024) has a prior mean per
    perturbation and a binary variable per cell, whether the perturbation took effect at all. Here
    that variable is summed out, and the s of a cell that escaped is within about :math:`\tau` of 0
    rather than exactly 0. Means (from 0.1 times standard normal draws) and shares :math:`\pi`
    (from 0.75) are learned. The KL divergence has no closed form and is estimated by log q - log p
    of the draw.

    Parameters
    ----------
    n_conditions
        Number of conditions, the background included.
    n_latent
        Dimension of s.
    escape_scale
        :math:`\tau`, between 0 and 1. Default 0.5: an untrained guide, of width 1, must be able to
        find the cells that escape. With 0.1 three of four fits of simulated counts never found
        them, with 0.3 to 0.7 all did.

    Raises
    ------
    ValueError
        If a size is not positive or `escape_scale` is outside its range.
    """

    @one_thread()  # means are drawn
    def __init__(self, n_conditions: int, n_latent: int, escape_scale: float = 0.5) -> None:
        super().__init__()
        check_arguments(locals(), "EscapingPerturbation")
        self.n_conditions = n_conditions
        self.n_latent = n_latent
        self.escape_scale = escape_scale
        self.means = nn.Parameter(0.1 * torch.randn(n_conditions, n_latent))
        self.logits = nn.Parameter(torch.full((n_conditions,), 3.0).log())

    def forward(self, batch: CellBatch) -> dist.Distribution:
        """Return the mixture of every cell: batch shape ``[cells]``, event ``[n_latent]``."""
        return self._mixture(batch.condition.long())

    @property
    def shares(self) -> Tensor:
        """Share of the cells of each condition on which it acts, ``[n_conditions]``.

        The entry of the background, which has no salient latent, has no meaning.
        """
        return self.logits.sigmoid()

    @torch.no_grad()
    def escape_probability(self, s: Tensor, condition: Tensor) -> Tensor:
        """Probability that each cell escaped its perturbation, given its salient latent.

        Average it over posterior draws of s.

        Parameters
        ----------
        s
            Salient latents, ``[..., cells, n_latent]``.
        condition
            Condition codes, ``[cells]``.

        Returns
        -------
        ``[..., cells]``.
        """
        mixture = self._mixture(condition.long())
        joint = mixture.component_distribution.log_prob(s.unsqueeze(-2))  # [..., cells, 2]
        joint = joint + mixture.mixture_distribution.logits
        return joint.softmax(-1)[..., 1]

    def _mixture(self, condition: Tensor) -> dist.MixtureSameFamily:
        acted = self.means[condition]  # [cells, latents]
        means = torch.stack([acted, torch.zeros_like(acted)], dim=-2)
        scales = torch.stack(
            [torch.ones_like(acted), torch.full_like(acted, self.escape_scale)], dim=-2
        )
        logits = self.logits[condition]
        log_weights = torch.stack([logits, torch.zeros_like(logits)], dim=-1)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=log_weights), dist.Normal(means, scales).to_event(1)
        )
