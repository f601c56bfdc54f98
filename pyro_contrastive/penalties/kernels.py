"""Penalties on all draws of a mini-batch, computed with Gaussian kernels."""

from __future__ import annotations

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.penalties._pairs import dependence, pair_sum
from pyro_contrastive.penalties.base import Penalty

SITES = ("z", "s")


class MMD(Penalty):
    r"""Maximum mean discrepancy: makes z similar in both populations, or s of background cells 0.

    .. math:: \mathrm{MMD}^2 = \overline{k(b, b')} + \overline{k(t, t')} - 2\,\overline{k(b, t)},
        \qquad k(x, y) = \sum_{f \in \{1/4, 1/2, 1, 2, 4\}} \exp(-\lVert x - y \rVert^2 / (2 f d))

    with means over all pairs (Gretton et al., JMLR 2012, the biased estimate, which is never
    negative) and d the dimension of the latent, which is half the expected squared distance between
    two draws of a standard normal. Both uses are those of MM-cVAE (Weinberger et al., AISTATS
    2022):

    * On z, b are the draws of background cells and t those of target cells (of all treatments
      together). It removes from the background latent what distinguishes target from background
      cells. 0 if a mini-batch lacks one of the populations.
    * On s, b are the draws of background cells and t is a point mass at 0; target cells are not
      used. It acts like :class:`Wasserstein`, with a bounded pull. 0 if a mini-batch has no
      background cells.

    Other kernels of the literature differ in their scales: MM-cVAE's code sums 13 of them, from
    :math:`10^{-6}` to :math:`10^6`. The narrow ones vanish for all pairs of distinct draws, and the
    wide ones compare the means only.

    Parameters
    ----------
    weight
        Multiplies the value, which lies between 0 and 10.
    site
        Name of the latent: "z" (default) or "s".
    annealed
        Whether the penalty grows with the KL weight.

    Raises
    ------
    ValueError
        If `site` is neither "z" nor "s".
    """

    uses_expression = False

    factors = (0.25, 0.5, 1.0, 2.0, 4.0)

    def __init__(self, weight: float = 1.0, site: str = "z", *, annealed: bool = True) -> None:
        super().__init__(weight, annealed=annealed)
        if site not in SITES:
            msg = f"MMD: site must be one of {SITES}, not {site!r}."
            raise ValueError(msg)
        self.site = site

    @property
    def name(self) -> str:
        """Name of the penalty with its site."""
        return f"mmd_{self.site}"

    def forward(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the squared MMD, averaged over particles."""
        draws = guide_trace.nodes[self.site]["value"]  # [..., cells, latents]
        if self.site == "s":
            return self._from_zero(draws, ~batch.is_target)
        n_target = batch.is_target.sum()
        n_background = len(batch) - n_target
        # Weights 1/n in one population and -1/n in the other: one product gives all three means.
        sign = torch.where(
            batch.is_target, 1.0 / n_target.clamp(min=1), -1.0 / n_background.clamp(min=1)
        )
        sign = sign.to(draws) * ((n_target > 0) & (n_background > 0))
        return pair_sum(draws, sign, self._scales(draws)).mean()

    def _from_zero(self, draws: Tensor, background: Tensor) -> Tensor:
        weight = background.to(draws) / background.sum().clamp(min=1)
        among = pair_sum(draws, weight, self._scales(draws))
        squares = draws.square().sum(-1)
        to_zero = sum((torch.exp(-squares / c) for c in self._scales(draws)), torch.zeros(()))
        at_zero = len(self.factors) * weight.sum()
        return (among - 2 * (to_zero * weight).sum(-1) + at_zero).mean()

    def _scales(self, draws: Tensor) -> list[float]:
        return [2 * factor * draws.shape[-1] for factor in self.factors]


class HSIC(Penalty):
    r"""Makes z and s of target cells independent: normalised Hilbert-Schmidt criterion.

    .. math:: \frac{\langle K_c, L_c \rangle}{\lVert K_c \rVert \, \lVert L_c \rVert}

    with K and L the Gaussian kernel matrices of the draws of z and of s of the target cells of the
    mini-batch, centred, each with the median squared distance as bandwidth (Gretton et al., ALT
    2005; the normalisation is Cortes et al., JMLR 2012). Between 0 (independent) and 1. It keeps
    variation that both populations share out of the salient latent, as the HSIC penalty of
    StrastiveVI does, which is not normalised and shrinks with the latents. 0 with fewer than three
    target cells, and where one of the latents is constant.

    Parameters
    ----------
    weight
        Multiplies the value.
    annealed
        Whether the penalty grows with the KL weight.
    """

    uses_expression = False

    def forward(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the normalised HSIC of z and s over target cells, averaged over particles."""
        z, s = (guide_trace.nodes[site]["value"] for site in SITES)
        return dependence(z, s, batch.is_target).mean()
