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

    Subclasses implement :meth:`forward`. A prior may own learned parameters, and may depend on the
    batch (for example on ``batch.condition``, if it differs between treatments).

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
    """Support of each dimension of the latent: the real line, or ``constraints.positive``.

    The guide's posterior is normal on the real line and log-normal on its positive half.
    """

    @abstractmethod
    def forward(self, batch: CellBatch) -> dist.Distribution:
        """Return the prior of every cell: batch ``[]`` or ``[cells]``, event ``[latents]``.

        Training calls it in some steps only and replays a recording of it in the others: see
        ``record_steps`` of :class:`~pyro_contrastive.training.TrainingPlan`.
        """

    def used(self, batch: CellBatch) -> Tensor | None:
        """Tell which dimensions a cell uses, as a mask ``[cells, latents]``; ``None`` for all.

        Only salient priors are asked. Unused dimensions are exactly 0 in the decoder, and the guide
        sets their posterior to the standard normal, which must therefore be their prior.
        """
        return None

    def bind(self, encoder: nn.Module) -> None:
        """Receive the encoder that infers this latent; most priors ignore it.

        Called once, when the model and the guide are made. A prior that keeps the encoder must not
        register it as a submodule, since it belongs to the guide.
        """
