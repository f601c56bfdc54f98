"""Penalties on the draws of a whole mini-batch, by Gaussian kernels."""

from __future__ import annotations

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.penalties.base import Penalty

SITES = ("z", "s")
MIN_CELLS = 3  # two cells are always perfectly dependent


class MMD(Penalty):
    r"""Maximum mean discrepancy: makes z alike in both populations, or s of background cells 0.

    .. math:: \mathrm{MMD}^2 = \overline{k(b, b')} + \overline{k(t, t')} - 2\,\overline{k(b, t)},
        \qquad k(x, y) = \sum_{f \in \{1/4, 1/2, 1, 2, 4\}} \exp(-\lVert x - y \rVert^2 / (2 f d))

    with means over all pairs (Gretton et al., JMLR 2012, the biased estimate, which is never
    negative) and d the dimension of the latent: half the squared distance between two draws of a
    standard normal. Both uses are those of MM-cVAE (Weinberger et al., AISTATS 2022):

    * On z, b are the draws of background cells and t those of target cells (of all treatments
      together). It takes out of the background latent what tells target from background cells. 0 if
      a mini-batch lacks one of the populations.
    * On s, b are the draws of background cells and t is a point mass at 0: target cells have no
      part in it. It does what :class:`Wasserstein` does, with a bounded pull. 0 if a mini-batch has
      no background cells.

    Other kernels of the literature differ in their scales: MM-cVAE's code sums 13 of them, from
    :math:`10^{-6}` to :math:`10^6`, of which the narrow ones see no pair of distinct draws and the
    wide ones only the means.

    Parameters
    ----------
    weight
        Multiplies the value, which lies between 0 and 10.
    site
        Which latent: "z" (default) or "s".
    annealed
        Whether the penalty grows with the KL weight.

    Raises
    ------
    ValueError
        If `site` is neither.
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
        # +1/n for a pair of one population, -1/n for the other: all three means in one product.
        sign = torch.where(
            batch.is_target, 1.0 / n_target.clamp(min=1), -1.0 / n_background.clamp(min=1)
        )
        sign = sign.to(draws) * ((n_target > 0) & (n_background > 0))
        return ((self._kernel(squared_distances(draws), draws) @ sign) * sign).sum(-1).mean()

    def _from_zero(self, draws: Tensor, background: Tensor) -> Tensor:
        weight = background.to(draws) / background.sum().clamp(min=1)
        among = ((self._kernel(squared_distances(draws), draws) @ weight) * weight).sum(-1)
        to_zero = (self._kernel(draws.square().sum(-1), draws) * weight).sum(-1)
        at_zero = len(self.factors) * weight.sum()
        return (among - 2 * to_zero + at_zero).mean()

    def _kernel(self, distances: Tensor, draws: Tensor) -> Tensor:
        kernel = torch.zeros_like(distances)
        for factor in self.factors:
            kernel = kernel + torch.exp(-distances / (2 * factor * draws.shape[-1]))
        return kernel


class HSIC(Penalty):
    r"""Makes z and s of target cells independent: normalised Hilbert-Schmidt criterion.

    .. math:: \frac{\langle K_c, L_c \rangle}{\lVert K_c \rVert \, \lVert L_c \rVert}

    with K and L the Gaussian kernel matrices of the draws of z and of s of the target cells of the
    mini-batch, centred, each with the median squared distance as bandwidth (Gretton et al., ALT
    2005; the normalisation is Cortes et al., JMLR 2012). Between 0 (independent) and 1. It keeps
    variation that both populations share out of the salient latent, as the HSIC penalty of
    StrastiveVI does; there it is not normalised, and shrinks as the latents do. 0 with fewer than
    three target cells, and where one of the latents is constant.

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
        target = batch.is_target
        k, other = (
            centred_kernel(guide_trace.nodes[site]["value"], target) for site in SITES
        )  # [..., cells, cells]
        square_norms = k.square().sum((-2, -1)) * other.square().sum((-2, -1))
        # Where a latent is constant the fraction is 0/0; the bound makes it, and its slope, 0.
        norms = square_norms.clamp(min=torch.finfo(k.dtype).eps ** 2).sqrt()
        aligned = (k * other).sum((-2, -1)) / norms
        return aligned.mean() * (target.sum() >= MIN_CELLS)


def centred_kernel(draws: Tensor, cells: Tensor) -> Tensor:
    """Gaussian kernel matrix of some cells, centred, with the median distance as bandwidth.

    Parameters
    ----------
    draws
        ``[..., cells, latents]``.
    cells
        Which cells count, boolean ``[cells]``. Rows and columns of the others are 0; they are not
        cut out, because on a GPU that would wait for the number of cells.

    Returns
    -------
    ``[..., cells, cells]``.
    """
    pairs = cells.unsqueeze(-1) & cells
    distances = squared_distances(draws)
    chosen = torch.where(pairs, distances.detach(), torch.nan).flatten(-2)
    bandwidth = chosen.nanmedian(-1).values.nan_to_num(1.0)
    bandwidth = bandwidth.clamp(min=torch.finfo(draws.dtype).eps ** 2)[..., None, None]
    # Pairs that do not count may be far apart in this bandwidth: keep them out of the exponent.
    kernel = torch.exp(-torch.where(pairs, distances, 0.0) / (2 * bandwidth)) * pairs
    n_cells = cells.sum().clamp(min=1)
    kernel = (kernel - kernel.sum(-1, keepdim=True) / n_cells) * pairs
    return (kernel - kernel.sum(-2, keepdim=True) / n_cells) * pairs


def squared_distances(draws: Tensor) -> Tensor:
    """Squared Euclidean distances between all pairs of rows, ``[..., cells, cells]``."""
    # Of x.x + y.y - 2 x.y little is left for rows far from 0 but close to each other: move them.
    draws = draws - draws.detach().mean(-2, keepdim=True)
    norms = draws.square().sum(-1)
    products = draws @ draws.transpose(-2, -1)
    return (norms.unsqueeze(-1) + norms.unsqueeze(-2) - 2 * products).clamp(min=0.0)
