"""The base class of penalties, and averages over cells that several of them need."""

from __future__ import annotations

from abc import abstractmethod

from pyro.poutine import Trace
from torch import Tensor

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.components.component import Component


class Penalty(Component):
    """A term added to the loss. Sign: positive means penalised. Scale: per pair of cells.

    Subclasses implement :meth:`forward`, which returns the penalty *before* the weight. A penalty
    may own parameters; they are trained together with those of the model.

    Parameters
    ----------
    weight
        Multiplies the value; at least 0.
    annealed
        Whether the value is also multiplied by the KL weight, so that it grows during warm-up.

    Attributes
    ----------
    uses_expression
        Whether :meth:`forward` may read the sites ``scale`` and ``rate`` of the model, or the
        parameters of the distribution of counts (default). If no penalty does, a training step
        leaves them out and is faster.

    Raises
    ------
    ValueError
        If the weight is negative.
    """

    uses_expression: bool = True

    def __init__(self, weight: float = 1.0, *, annealed: bool = True) -> None:
        super().__init__()
        check_arguments(locals(), type(self).__name__)
        self.weight = weight
        self.annealed = annealed

    @property
    def name(self) -> str:
        """Name under which the history records the penalty."""
        return type(self).__name__.lower()

    @abstractmethod
    def forward(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the unweighted penalty of a mini-batch, a scalar.

        Training calls it in some steps only and replays a recording of it in the others: see
        ``record_steps`` of :class:`~pyro_contrastive.training.TrainingPlan`.

        Parameters
        ----------
        model_trace, guide_trace
            Traces of one run of model and guide. ``trace.nodes["s"]["fn"]`` is the distribution at
            a site, ``["value"]`` its value. With vectorised particles both have a leading axis of
            particles: average over it. In a guide whose latents depend on each other, the
            distribution is that given the latents drawn before, except for s of a background cell;
            that of a :class:`~pyro_contrastive.FlowGuide` has no mean or variance in closed form.
        batch
            The cells of the mini-batch.
        """

    def own_loss(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor | None:
        """Return the loss of the penalty's own parameters, if it is not the penalty itself.

        For an adversary, whose parameters must not lower the penalty. In training mode the
        objective adds its gradient to that of the loss, without its value, the weight or the KL
        weight. Detach all that comes from the traces, so that no gradient reaches the model and the
        guide. Default ``None``: the parameters minimise the penalty.

        Parameters
        ----------
        model_trace, guide_trace, batch
            As in :meth:`forward`.
        """
        return None


def mean_over(per_cell: Tensor, cells: Tensor) -> Tensor:
    """Return the mean over some cells (and all particles); 0 without such cells.

    Parameters
    ----------
    per_cell
        A number per cell, ``[..., cells]``; must be finite in every cell.
    cells
        Which cells count, boolean ``[cells]``. It multiplies instead of indexing, which would make
        the program wait for a GPU.
    """
    total = (per_cell * cells).sum(-1).mean()
    return total / cells.sum().clamp(min=1)
