"""Penalties: terms added to the loss beside the ELBO."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.components import Component


class Penalty(Component):
    """A term added to the loss. Sign: positive means penalised. Scale: per pair of cells.

    Subclasses implement :meth:`forward` and return the penalty *before* the weight.

    Parameters
    ----------
    weight
        Multiplies the value; at least 0.
    annealed
        Whether the value is multiplied by the KL weight too, so that it grows during warm-up.

    Raises
    ------
    ValueError
        If the weight is negative.
    """

    def __init__(self, weight: float = 1.0, *, annealed: bool = True) -> None:
        super().__init__()
        if not weight >= 0:
            msg = f"{type(self).__name__}: the weight must be at least 0, not {weight}."
            raise ValueError(msg)
        self.weight = weight
        self.annealed = annealed

    @property
    def name(self) -> str:
        """Under which name the history records the penalty."""
        return type(self).__name__.lower()

    @abstractmethod
    def forward(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the unweighted penalty of a mini-batch, a scalar.

        Parameters
        ----------
        model_trace, guide_trace
            Traces of one run of model and guide. ``trace.nodes["s"]["fn"]`` is the distribution at
            a site, ``["value"]`` its value. With vectorised particles both have a leading axis of
            particles: average over it.
        batch
            The cells of the mini-batch.
        """


class Wasserstein(Penalty):
    r"""Pins q(s | x) of background cells to 0 (contrastiveVI, Weinberger et al. 2023).

    The squared 2-Wasserstein distance between :math:`q(s \mid x_n)` and a point mass at 0,

    .. math:: W_n = \lVert E_q[s_n] \rVert^2 + \sum_k \mathrm{Var}_q[s_{nk}]

    averaged over the background cells of the mini-batch; 0 if there are none.

    Parameters
    ----------
    weight
        scvi-tools' ``wasserstein_penalty``.
    annealed
        As in scvi-tools by default: the penalty grows with the KL weight.
    """

    def forward(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the mean of W over background cells."""
        per_cell = self.per_cell(guide_trace)  # [..., cells]
        background = ~batch.is_target
        return (per_cell * background).mean(-1).mean() * len(batch) / background.sum().clamp(min=1)

    @staticmethod
    def per_cell(guide_trace: Trace) -> Tensor:
        """Return W of every cell, target cells included, shape ``[..., cells]``."""
        posterior = guide_trace.nodes["s"]["fn"]
        return (posterior.mean.square() + posterior.variance).sum(-1)


class MMD(Penalty):
    r"""Makes a latent of background and of target cells alike: maximum mean discrepancy.

    .. math:: \mathrm{MMD}^2 = \overline{k(b, b')} + \overline{k(t, t')} - 2\,\overline{k(b, t)},
        \qquad k(x, y) = \sum_{f \in \{1/4, 1/2, 1, 2, 4\}} \exp(-\lVert x - y \rVert^2 / (2 f d))

    with means over all pairs of background draws b and target draws t of the mini-batch (Gretton et
    al., JMLR 2012, the biased estimate, which is never negative) and d the dimension of the latent:
    half the squared distance between two draws of a standard normal. On z it takes out of the
    background latent what tells target from background cells, as in MM-cVAE (Weinberger et al.,
    AISTATS 2022). 0 if a mini-batch lacks one of the populations.

    Parameters
    ----------
    weight
        Multiplies the value, which lies between 0 and 10.
    site
        Which latent: "z" (default) or "s".
    annealed
        Whether the penalty grows with the KL weight.
    """

    factors = (0.25, 0.5, 1.0, 2.0, 4.0)

    def __init__(self, weight: float = 1.0, site: str = "z", *, annealed: bool = True) -> None:
        super().__init__(weight, annealed=annealed)
        self.site = site

    @property
    def name(self) -> str:
        """Name of the penalty with its site."""
        return f"mmd_{self.site}"

    def forward(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the squared MMD between the draws of both populations."""
        draws = guide_trace.nodes[self.site]["value"]  # [..., cells, latents]
        n_target = batch.is_target.sum()
        n_background = len(batch) - n_target
        # +1/n for a pair of one population, -1/n for the other: all three means in one product.
        sign = torch.where(batch.is_target, 1.0 / n_target, -1.0 / n_background)
        sign = sign.to(draws) * ((n_target > 0) & (n_background > 0))
        sign = torch.nan_to_num(sign, nan=0.0)
        distances = squared_distances(draws)
        kernel = torch.zeros_like(distances)
        for factor in self.factors:
            kernel = kernel + torch.exp(-distances / (2 * factor * draws.shape[-1]))
        return ((kernel @ sign) * sign).sum(-1).mean()


class HSIC(Penalty):
    r"""Makes z and s of target cells independent: normalised Hilbert-Schmidt criterion.

    .. math:: \frac{\langle K_c, L_c \rangle}{\lVert K_c \rVert \, \lVert L_c \rVert}

    with K and L the Gaussian kernel matrices of the draws of z and of s of the target cells of the
    mini-batch, centred, each with the median squared distance as bandwidth (Gretton et al., ALT
    2005; the normalisation is Cortes et al., JMLR 2012). Between 0 (independent) and 1. It keeps
    variation that both populations share out of the salient latent. 0 with fewer than three target
    cells.

    Parameters
    ----------
    weight
        Multiplies the value.
    annealed
        Whether the penalty grows with the KL weight.
    """

    def forward(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the normalised HSIC of z and s over target cells."""
        target = batch.is_target.nonzero().squeeze(-1)
        z, s = (guide_trace.nodes[site]["value"][..., target, :] for site in "zs")
        if len(target) < 3:  # noqa: PLR2004  # two cells are always perfectly dependent
            return z.sum() * 0.0
        kernel_z, kernel_s = self._centred_kernel(z), self._centred_kernel(s)
        norms = kernel_z.norm(dim=(-2, -1)) * kernel_s.norm(dim=(-2, -1))
        return ((kernel_z * kernel_s).sum((-2, -1)) / norms).mean()

    @staticmethod
    def _centred_kernel(draws: Tensor) -> Tensor:
        distances = squared_distances(draws)
        bandwidth = distances.detach().flatten(-2).median(-1).values[..., None, None]
        kernel = torch.exp(-distances / (2 * bandwidth))
        kernel = kernel - kernel.mean(-1, keepdim=True)
        return kernel - kernel.mean(-2, keepdim=True)


def squared_distances(draws: Tensor) -> Tensor:
    """Squared Euclidean distances between all pairs of rows, ``[..., cells, cells]``."""
    norms = draws.square().sum(-1)
    products = draws @ draws.transpose(-2, -1)
    return (norms.unsqueeze(-1) + norms.unsqueeze(-2) - 2 * products).clamp(min=0.0)
