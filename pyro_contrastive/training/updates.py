"""The optimiser's steps; none is taken after a loss or gradient that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.training.clipping import Clipping
from pyro_contrastive.training.exchange import Exchange
from pyro_contrastive.training.finite import (
    Names,
    NonFiniteLossError,
    explain_gradient,
    explain_non_finite,
)
from pyro_contrastive.training.steps import Evaluated, PlainStep, RecordedStep
from pyro_contrastive.vae import ContrastiveVAE

STEPS_UNSEEN = 16
"""Steps after which the host waits for a GPU, to see whether all of them were finite."""


class _Step(NamedTuple):
    """What is needed to explain a failure; without the gradients, which take much memory."""

    batch: CellBatch
    kl_weight: Tensor
    when: str
    cells: Names | None
    loss: Tensor
    terms: dict[str, Tensor]
    own_total: Tensor
    """A sum that is finite if the loss and gradients of this process are ..."""
    total: Tensor
    """... and if those of all processes are."""


class Updates:
    """Evaluates mini-batches, and updates the weights if loss and gradients are finite.

    Reading a loss means waiting for the device. On a CPU that costs nothing, and every step is
    checked. On a GPU the host reads them after every 16th step; until then a flag on the device
    makes the optimiser skip all updates from the first step on that was not finite.

    Parameters
    ----------
    vae
        The model in training.
    evaluate
        Returns loss and gradients of a mini-batch.
    optimizer
        The optimiser of the weights.
    check_every
        Number of steps between checks; if above 1, the optimiser must be a fused one of torch,
        which supports ``found_inf``.

    Attributes
    ----------
    exchange
        Set where several processes train together: averages over them what a step has found.
    """

    def __init__(
        self,
        vae: ContrastiveVAE,
        evaluate: PlainStep | RecordedStep,
        optimizer: torch.optim.Optimizer,
        check_every: int = 1,
    ) -> None:
        self.vae = vae
        self.evaluate = evaluate
        self.plain = evaluate.plain if isinstance(evaluate, RecordedStep) else evaluate
        self.optimizer: Any = optimizer
        self.check_every = check_every
        self._buffers = list(vae.buffers())  # listed once: walking through all modules is slow
        self._before: list[Tensor] = []
        self.exchange: Exchange | None = None
        self._unseen: list[_Step] = []
        self.clipping = Clipping(next(vae.parameters()))
        self._n_taken = 0
        self._failed = torch.zeros((), device=next(vae.parameters()).device)

    def take(
        self, batch: CellBatch, kl_weight: float, when: str, cells: Names | None = None
    ) -> Evaluated:
        """Take the step of a mini-batch.

        Parameters
        ----------
        batch, kl_weight
            The cells, and the weight of the annealed KL terms.
        when
            Epoch and step, for the message of an error.
        cells
            Returns the names of the cells, for that message. Default: positions in `batch`.

        Raises
        ------
        NonFiniteLossError
            If loss or gradients are not finite, or were not in a step since the last check.
        KeyboardInterrupt
            In all processes, if Ctrl-C was pressed in one of several.
        """
        if not self._unseen:  # batch norm would average NaN too
            self._before = [buffer.clone() for buffer in self._buffers]
        self.optimizer.zero_grad()
        weight, objective = self.plain.tensor(kl_weight), self.vae.objective
        own = found = self.evaluate(batch, weight)
        if self.exchange is not None:
            found = self.exchange(own, len(batch))
        # The objective would set these, but a replayed step does not run it.
        objective.kl_weight, objective.terms = kl_weight, found.terms
        totals = own.total, found.total
        self._unseen.append(_Step(batch, weight, when, cells, own.loss, own.terms, *totals))
        if len(self._unseen) >= self.check_every:
            self.check()
        elif self.check_every > 1:
            failed = ~found.total.isfinite()
            self.optimizer.found_inf = self._failed = torch.maximum(self._failed, failed.float())
        self.clipping.clip(found.gradients, found.loss, self._n_taken)
        self._n_taken += 1
        self.optimizer.step()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return which steps have been recorded, if any, and how large gradients usually are."""
        evaluate = self.evaluate
        return {
            "n_taken": self._n_taken,
            "clipping": self.clipping.state_dict(),
            "recorded": evaluate.state_dict() if isinstance(evaluate, RecordedStep) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self._n_taken = state["n_taken"]
        self.clipping.load_state_dict(state["clipping"])
        if isinstance(self.evaluate, RecordedStep) and state["recorded"] is not None:
            self.evaluate.load_state_dict(state["recorded"])

    def check(self) -> None:
        """Check that the steps since the last check were finite.

        Raises
        ------
        NonFiniteLossError
            If one was not; the weights are those before it, the buffers those at the last check.
        """
        unseen, self._unseen = self._unseen, []
        if not unseen:
            return
        finite = torch.stack([step.total for step in unseen]).isfinite()
        if finite.all():
            if self.exchange is not None:
                self.exchange.stop_if_interrupted()
            return
        first = finite.tolist().index(False)
        try:
            error = self._explain(unseen[first], was_last=first == len(unseen) - 1)
            if self.exchange is not None:
                is_own = not unseen[first].own_total.isfinite()
                error = self.exchange.same_error(error, is_own=is_own)
            raise error
        finally:
            for buffer, value in zip(self._buffers, self._before, strict=True):
                buffer.copy_(value)

    def _explain(self, step: _Step, *, was_last: bool) -> NonFiniteLossError:
        if not step.loss.isfinite():
            return explain_non_finite(self.vae, step.batch, step.when, step.terms, step.cells)
        if not was_last:  # the present gradients are those of a later step
            self.plain(step.batch, step.kl_weight)
        return explain_gradient(self.vae, step.when)
