"""The optimiser's steps, none of which follows a loss or gradient that is not finite."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.training.finite import (
    NonFiniteLossError,
    explain_gradient,
    explain_non_finite,
)
from pyro_contrastive.training.steps import Evaluated, PlainStep, RecordedStep
from pyro_contrastive.vae import ContrastiveVAE

STEPS_UNSEEN = 16
"""Steps after which a GPU is waited for, to see whether all was finite."""


class _Step(NamedTuple):
    """What is needed of a step to say what failed; not its gradients, which are many."""

    batch: CellBatch
    kl_weight: Tensor
    when: str
    loss: Tensor
    terms: dict[str, Tensor]
    total: Tensor


class Updates:
    """Evaluates mini-batches, and changes the weights if all is finite.

    To look is to wait for the device. On a CPU that costs nothing, and each step is looked at. On a
    GPU it is every 16th that is; until then the optimiser is told there, on the device, to leave
    the weights as they were before the first step that was not finite.

    Parameters
    ----------
    vae
        What is trained.
    evaluate
        Returns loss and gradients of a mini-batch.
    optimizer
        Of the weights.
    looks_every
        Number of steps after which is looked; above 1 the optimiser must be one of torch's fused
        ones, which know ``found_inf``.
    """

    def __init__(
        self,
        vae: ContrastiveVAE,
        evaluate: PlainStep | RecordedStep,
        optimizer: torch.optim.Optimizer,
        looks_every: int = 1,
    ) -> None:
        self.vae = vae
        self.evaluate = evaluate
        self.plain = evaluate.plain if isinstance(evaluate, RecordedStep) else evaluate
        self.optimizer: Any = optimizer
        self.looks_every = looks_every
        self._buffers = list(vae.buffers())  # walking through all modules takes its time
        self._before: list[Tensor] = []
        self._unseen: list[_Step] = []
        self._failed = torch.zeros((), device=next(vae.parameters()).device)

    def take(self, batch: CellBatch, kl_weight: float, when: str) -> Evaluated:
        """Take the step of a mini-batch.

        Parameters
        ----------
        batch, kl_weight
            The cells, and the weight of the annealed KL terms.
        when
            For an error's message.

        Raises
        ------
        NonFiniteLossError
            If loss or gradients are not finite, or were not since the last look.
        """
        if not self._unseen:  # batch norm averages whatever it sees, NaN included
            self._before = [buffer.clone() for buffer in self._buffers]
        self.optimizer.zero_grad()
        weight, objective = self.plain.tensor(kl_weight), self.vae.objective
        found = self.evaluate(batch, weight)
        objective.kl_weight, objective.terms = kl_weight, found.terms
        self._unseen.append(_Step(batch, weight, when, found.loss, found.terms, found.total))
        if len(self._unseen) >= self.looks_every:
            self.look()
        elif self.looks_every > 1:
            failed = ~found.total.isfinite()
            self.optimizer.found_inf = self._failed = torch.maximum(self._failed, failed.float())
        self.optimizer.step()
        return found

    def look(self) -> None:
        """Find out whether the steps since the last look were finite.

        Raises
        ------
        NonFiniteLossError
            If one was not; the weights are those before it, and the buffers those at the last look.
        """
        unseen, self._unseen = self._unseen, []
        if not unseen:
            return
        finite = torch.stack([step.total for step in unseen]).isfinite()
        if finite.all():
            return
        first = finite.tolist().index(False)
        try:
            raise self._explain(unseen[first], was_last=first == len(unseen) - 1)
        finally:
            for buffer, value in zip(self._buffers, self._before, strict=True):
                buffer.copy_(value)

    def _explain(self, step: _Step, *, was_last: bool) -> NonFiniteLossError:
        if not step.loss.isfinite():
            return explain_non_finite(self.vae, step.batch, step.when, step.terms)
        if not was_last:  # the gradients there are now are those of a later step
            self.plain(step.batch, step.kl_weight)
        return explain_gradient(self.vae, step.when)
