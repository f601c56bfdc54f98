"""Priors: modules whose ``forward(batch)`` returns a distribution with one event dimension."""

from __future__ import annotations

from abc import abstractmethod

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.components.component import Component


class Prior(Component):
    """A prior over a latent variable of each cell.

    Subclasses implement :meth:`forward`. A prior may own learned parameters, and may look at the
    batch (at ``batch.condition``, say, for a prior that differs between treatments).

    Examples
    --------
    A learned mean per treatment:

    >>> import torch
    >>> class PerTreatment(Prior):
    ...     def __init__(self, n_conditions: int, n_latent: int) -> None:
    ...         super().__init__()
    ...         self.mean = torch.nn.Parameter(torch.zeros(n_conditions, n_latent))
    ...
    ...     def forward(self, batch: CellBatch) -> dist.Distribution:
    ...         return dist.Normal(self.mean[batch.condition], 1.0).to_event(1)
    """

    support: constraints.Constraint = constraints.real
    """Where the latent lives, each dimension of it: the whole line, or ``constraints.positive``.

    The guide follows: normal on the line, log-normal on the positive half.
    """

    @abstractmethod
    def forward(self, batch: CellBatch) -> dist.Distribution:
        """Return the prior of every cell: batch ``[]`` or ``[cells]``, event ``[latents]``.

        In training it is called in some steps only, and played from a recording in the others: see
        ``record_steps`` of :class:`~pyro_contrastive.training.TrainingPlan`.
        """

    def used(self, batch: CellBatch) -> Tensor | None:
        """Tell which dimensions a cell has, as a mask ``[cells, latents]``; ``None``: all of them.

        Only asked of salient priors. The others are exactly 0 in the decoder, and the guide puts
        them at the standard normal, which must be their prior.
        """
        return None

    def bind(self, encoder: nn.Module) -> None:
        """Learn which encoder infers this latent; most priors have no use for it.

        Called once, when the model and the guide are made. Whoever keeps the encoder must not
        register it as a submodule: it belongs to the guide.
        """


def check_at_least(minimum: int, owner: str, **sizes: int) -> None:
    """Refuse a size that is too small, naming it.

    Raises
    ------
    ValueError
        If one of `sizes` is below `minimum`.
    """
    for name, size in sizes.items():
        if size < minimum:
            msg = f"{owner}: {name} must be at least {minimum}, not {size}."
            raise ValueError(msg)
