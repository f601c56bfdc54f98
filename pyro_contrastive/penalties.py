"""Penalties: terms added to the loss beside the ELBO."""

from __future__ import annotations

from abc import abstractmethod

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
