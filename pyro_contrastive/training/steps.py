"""Loss and gradients of a mini-batch: as the Pyro programs say, or from a recording of that."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pyro_contrastive.cells import TENSORS, CellBatch
from pyro_contrastive.objective import ContrastiveELBO, ContrastiveMeanFieldELBO
from pyro_contrastive.training.recorder import Recorder
from pyro_contrastive.vae import ContrastiveVAE

logger = logging.getLogger(__name__)
Objective = ContrastiveELBO | ContrastiveMeanFieldELBO

RECORDED_AFTER = 25
"""Steps of one shape before it is recorded: recording takes the time that so many save."""
CHECKED_EVERY = 128
"""A recording is checked in every step whose number, since it was made, this divides."""
TOLERANCE, FLOOR = 1e-4, 1e-3
"""Relative error of a check, in tensors above this share of the loss or of the whole gradient."""
_DISAGREEMENT = (
    "a recorded step has another result than the plain one, so a prior, likelihood or penalty does "
    "what torch does not see (NumPy, random numbers of Python, numbers that change from step to "
    "step). Steps since the last check may have had it too: train with "
    "plan_kwargs={'record_steps': False}"
)
Shape = tuple[tuple[str, torch.dtype, torch.Size | None], ...]
Play = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Evaluated:
    """What a step is made of; the gradients are those of the parameters.

    Parameters
    ----------
    loss
        The loss, penalties included.
    terms
        Its parts; see :attr:`ContrastiveELBO.terms`.
    gradients
        By parameter; ``None`` where the loss does not depend on it.
    total
        Finite if the loss and all gradients are.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    gradients: list[Tensor | None]
    total: Tensor


class PlainStep:
    """Evaluates loss and gradients by running model, guide and penalties.

    Parameters
    ----------
    vae
        What is trained.
    loss
        A module whose forward is the loss, as Fabric has set it up.
    fabric
        Device and precision.
    """

    def __init__(self, vae: ContrastiveVAE, loss: nn.Module, fabric: Fabric) -> None:
        self.objective = vae.objective
        self.parameters = list(vae.parameters())  # walking through all modules takes its time
        self.loss = loss
        self.fabric = fabric

    def __call__(self, batch: CellBatch, kl_weight: float | Tensor) -> Evaluated:
        """Evaluate a mini-batch; leaves the gradients in the parameters."""
        for parameter in self.parameters:
            parameter.grad = None
        self.objective.kl_weight = kl_weight
        loss = self.loss(batch)
        self.fabric.backward(loss)
        gradients = [parameter.grad for parameter in self.parameters]
        sums = [gradient.sum() for gradient in gradients if gradient is not None]
        total = torch.stack([loss.detach(), *sums]).sum()
        return Evaluated(loss.detach(), dict(self.objective.terms), gradients, total)


class RecordedStep:
    """Evaluates the same from recordings of plain steps, in which Python and Pyro have no part.

    A recording is made for each shape that mini-batches have, and checked against the plain step,
    with the same cells and the same noise, in the first, second, fourth ... and later in every
    128th step after. Where a step cannot be recorded, or a recording turns out to say something
    else, all further steps are plain ones, and a line is logged.

    Parameters
    ----------
    plain
        What to record.
    buffers
        What a step changes beside the gradients.
    """

    def __init__(self, plain: PlainStep, buffers: Sequence[Tensor]) -> None:
        self.plain = plain
        self.buffers = buffers
        self.is_recording = True
        self._recordings: dict[Shape, Play] = {}
        self._n_seen: Counter[Shape] = Counter()

    def __call__(self, batch: CellBatch, kl_weight: float) -> Evaluated:
        """Evaluate a mini-batch; leaves the gradients in the parameters."""
        shape = _shape(batch)
        self._n_seen[shape] += 1
        if not self.is_recording or self._n_seen[shape] <= RECORDED_AFTER:
            return self.plain(batch, kl_weight)
        play = self._recordings.get(shape)
        if play is None:
            return self._record(shape, batch, kl_weight)
        n_steps = self._n_seen[shape] - RECORDED_AFTER - 1  # since it was made
        if n_steps & (n_steps - 1) == 0 or n_steps % CHECKED_EVERY == 0:
            return self._checked(play, batch, kl_weight)
        evaluated = self._played(play, batch, kl_weight)
        if evaluated is None:
            return self.plain(batch, kl_weight)
        for parameter, gradient in zip(self.plain.parameters, evaluated.gradients, strict=True):
            parameter.grad = gradient
        return evaluated

    def _inputs(self, batch: CellBatch, kl_weight: float) -> list[Tensor]:
        like = self.plain.parameters[0]
        weight = torch.full((), kl_weight, dtype=like.dtype, device=like.device)
        return [weight, *_tensors(batch).values()]

    def _record(self, shape: Shape, batch: CellBatch, kl_weight: float) -> Evaluated:
        """Take a plain step, and record it."""
        inputs = self._inputs(batch, kl_weight)
        recorder = Recorder(inputs)
        with recorder:
            evaluated = self.plain(batch, inputs[0])
        if recorder.refusal is None:
            self._recordings[shape] = recorder.playing(vars(evaluated))
        else:
            self._give_up(logging.INFO, recorder.refusal)
        return evaluated

    def _played(self, play: Play, batch: CellBatch, kl_weight: float) -> Evaluated | None:
        """Evaluate a mini-batch from a recording; ``None`` if that fails."""
        try:
            with torch.no_grad():
                return Evaluated(**play(*self._inputs(batch, kl_weight)))
        except Exception as error:  # torch and its extensions raise many kinds
            self._give_up(logging.WARNING, f"a recorded step failed ({error})")
            return None

    def _checked(self, play: Play, batch: CellBatch, kl_weight: float) -> Evaluated:
        """Take a plain step, and see whether the recording says the same."""
        before = [buffer.clone() for buffer in self.buffers]
        device = self.plain.parameters[0].device
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            played = self._played(play, batch, kl_weight)
        after = [buffer.clone() for buffer in self.buffers]
        for buffer, value in zip(self.buffers, before, strict=True):
            buffer.copy_(value)
        evaluated = self.plain(batch, kl_weight)
        if played is None or not evaluated.total.isfinite():
            return evaluated
        if not (_agree(played, evaluated) and all(map(_near, after, self.buffers))):
            self._give_up(logging.WARNING, _DISAGREEMENT)
        return evaluated

    def _give_up(self, level: int, why: str) -> None:
        self.is_recording = False
        self._recordings.clear()
        logger.log(level, "Training takes plain steps, which are slower: %s.", why)


def _tensors(batch: CellBatch) -> dict[str, Tensor]:
    """Return all tensors of a mini-batch by name."""
    fields = {name: getattr(batch, name) for name in TENSORS}
    found = {name: tensor for name, tensor in fields.items() if tensor is not None}
    if batch.rows is not None:
        rows = batch.rows.cells_by_genes
        found |= {"indices": rows.indices, "offsets": rows.offsets, "values": rows.values}
    return found


def _shape(batch: CellBatch) -> Shape:
    """Return what a recording holds for: the numbers of all but the non-zero counts."""
    return tuple(
        (name, tensor.dtype, None if name in {"indices", "values"} else tensor.shape)
        for name, tensor in _tensors(batch).items()
    )


def _near(a: Tensor, b: Tensor, scale: Tensor | float = 1.0) -> bool:
    """Tell whether two tensors agree, up to what another order of sums makes of them."""
    a, b = a.double(), b.double()
    size = torch.maximum(b.norm(), torch.as_tensor(scale, device=b.device) * FLOOR)
    return bool((a - b).norm() <= TOLERANCE * size)


def _agree(played: Evaluated, plain: Evaluated) -> bool:
    """Tell whether two evaluations of a step agree."""
    pairs = list(zip(played.gradients, plain.gradients, strict=True))
    if played.terms.keys() != plain.terms.keys() or any(
        (a is None) != (b is None) for a, b in pairs
    ):
        return False
    gradients = [(a, b) for a, b in pairs if a is not None and b is not None]
    size = torch.stack([b.norm() for _, b in gradients]).norm()
    return (
        _near(played.loss, plain.loss)
        and all(_near(played.terms[n], plain.terms[n], plain.loss.abs()) for n in plain.terms)
        and all(_near(a, b, size) for a, b in gradients)
    )
