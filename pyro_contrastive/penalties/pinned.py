"""Penalties that pin the salient latent to 0, cell by cell."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.penalties.base import Penalty, mean_over


class Wasserstein(Penalty):
    r"""Pins q(s | x) of background cells to 0 (contrastiveVI, Weinberger et al. 2023).

    The squared 2-Wasserstein distance between :math:`q(s \mid x_n)` and a point mass at 0,

    .. math:: W_n = \lVert E_q[s_n] \rVert^2 + \sum_k \mathrm{Var}_q[s_{nk}]

    averaged over the background cells of the mini-batch; 0 if there are none. It is at least 0, in
    units of s squared. For a posterior without closed form it is the squared norm of the draw,
    which has this mean.

    Parameters
    ----------
    weight
        scvi-tools' ``wasserstein_penalty``.
    annealed
        Whether the penalty grows with the KL weight, as it does in scvi-tools (default).
    """

    uses_expression = False

    def forward(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the mean of W over background cells."""
        return mean_over(self.per_cell(guide_trace), ~batch.is_target)

    @staticmethod
    def per_cell(guide_trace: Trace) -> Tensor:
        """Return W of every cell, target cells included, shape ``[..., cells]``."""
        site = guide_trace.nodes["s"]
        try:
            squares = site["fn"].mean.square() + site["fn"].variance
        except NotImplementedError:  # no closed form for this posterior: one draw
            squares = site["value"].square()
        return squares.sum(-1)


class NarrowSalient(Penalty):
    r"""Gives s of background cells a narrow prior at 0 (SepVAE, Louiset et al. 2023).

    .. math:: \mathrm{KL}\big(q(s \mid x_n) \,\Vert\, N(0, \sigma^2 I)\big)
        = \frac{1}{2} \sum_k \Big[\frac{m_{nk}^2 + v_{nk}}{\sigma^2} - 1
        - \log \frac{v_{nk}}{\sigma^2}\Big]

    with m and v the mean and variance of q, averaged over the background cells of the mini-batch; 0
    if there are none. It is at least 0, in nats per background cell. With weight 1 and annealing,
    the defaults, it is the KL divergence that SepVAE's ELBO has for background cells. (The decoder
    still gets s = 0 for them, as in contrastiveVI.) Unlike :class:`Wasserstein` it does not reward
    variances below :math:`\sigma^2`. For a posterior without closed form it is log q - log p of
    the draw, which may be negative.

    Of SepVAE's other terms, the mutual information of z and s is :class:`TotalCorrelation`, and the
    classification of cells by their s is :class:`SalientClassifier`.

    Parameters
    ----------
    weight
        Multiplies the value.
    sigma
        Standard deviation of the prior, positive. The default, 0.1, is a choice of this library: a
        tenth of the prior's width in target cells.
    annealed
        Whether the penalty grows with the KL weight.

    Raises
    ------
    ValueError
        If `sigma` is not positive.
    """

    uses_expression = False

    def __init__(self, weight: float = 1.0, sigma: float = 0.1, *, annealed: bool = True) -> None:
        super().__init__(weight, annealed=annealed)
        check_arguments(locals(), "NarrowSalient")
        self.sigma = sigma

    def forward(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the mean KL divergence over background cells."""
        site = guide_trace.nodes["s"]
        posterior, draw = site["fn"], site["value"]
        zero = torch.zeros_like(draw)
        prior = dist.Normal(zero, zero + self.sigma).to_event(1)
        try:
            per_cell = torch.distributions.kl_divergence(posterior, prior)
        except NotImplementedError:  # no closed form for this posterior: one draw
            per_cell = posterior.log_prob(draw) - prior.log_prob(draw)
        return mean_over(per_cell, ~batch.is_target)


class LateSalient(Penalty):
    r"""Also pins q(s | x) of target cells to 0, in the first training steps only.

    .. math:: \Big(1 - \frac{t}{T}\Big)_+ \; W_n, \quad
        W_n = \lVert E_q[s_n] \rVert^2 + \sum_k \mathrm{Var}_q[s_{nk}]

    averaged over the target cells of the mini-batch, in training step t = 0, 1, ... Which latent
    represents what is settled in the first steps and hardly changes later. So both populations are
    first explained by z only, which then holds what they share before s could take part of it. A
    posterior at 0 with a small variance does not teach the decoder to ignore s, unlike one at the
    prior. The penalty is from this library; ``benchmarks/README.md`` shows its effect.

    Parameters
    ----------
    weight
        Multiplies the value. Default 1.
    n_steps
        T, the number of steps after which the penalty stays 0. Evaluations in training mode are
        counted: one per step, or one per particle unless particles are vectorised. The count is
        saved with the model. Default 50, for ``schedule="fast"``; smaller learning rates need more.

    Raises
    ------
    ValueError
        If the weight is negative or `n_steps` less than 1.
    """

    uses_expression = False
    n_taken: Tensor

    def __init__(self, weight: float = 1.0, n_steps: int = 50) -> None:
        super().__init__(weight, annealed=False)
        check_arguments(locals(), "LateSalient")
        self.n_steps = n_steps
        self.register_buffer("n_taken", torch.zeros((), dtype=torch.long))

    @property
    def is_changed_by_training(self) -> bool:
        """Always true, since the penalty counts steps."""
        return True

    def forward(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the mean of W over target cells, times the share of steps that are left."""
        share = (1 - self.n_taken / self.n_steps).clamp(min=0)
        if self.training:
            self.n_taken.add_(1)  # in place, so that replayed steps count too
        return share * mean_over(Wasserstein.per_cell(guide_trace), batch.is_target)
