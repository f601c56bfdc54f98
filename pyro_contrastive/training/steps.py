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

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.observed.observation import OF_VARYING_SIZE
from pyro_contrastive.training.captured import CAPTURED_ON, Captured
from pyro_contrastive.training.recorder import Recorder
from pyro_contrastive.training.state import Saved, changed, fingerprint
from pyro_contrastive.vae import ContrastiveVAE

logger = logging.getLogger(__name__)

RECORDED_AFTER = 25
"""Steps of one shape before it is recorded: recording takes the time that so many save."""
CHECKED_EVERY = 128
"""A recording is checked in every step whose number, since it was made, this divides."""
TOLERANCE, FLOOR = 1e-5, 1e-4
"""Relative error of a check, in tensors above this share of the loss or of the whole gradient."""
_DISAGREEMENT = (
    "a recorded step has another result than the plain one, so that model, guide or a penalty does "
    "what torch does not show (random numbers of others, seeds set inside, numbers that change "
    "from step to step). Steps since the last check may have had it too: train with "
    "plan_kwargs={'record_steps': False}"
)
Shape = tuple[tuple[str, torch.dtype, torch.Size | None], ...]


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
    parameters
        Whose gradients are wanted; their dtype is that of the loss.
    """

    def __init__(
        self, vae: ContrastiveVAE, loss: nn.Module, fabric: Fabric, parameters: Sequence[Tensor]
    ) -> None:
        self.vae = vae
        self.loss = loss
        self.fabric = fabric
        self.parameters = list(parameters)

    def tensor(self, kl_weight: float) -> Tensor:
        """Return the weight as a tensor, which on a GPU needs no waiting for."""
        like = self.parameters[0]
        return torch.full((), kl_weight, dtype=like.dtype, device=like.device)

    def __call__(self, batch: CellBatch, kl_weight: Tensor) -> Evaluated:
        """Evaluate a mini-batch; leaves the gradients in the parameters."""
        for parameter in self.parameters:
            parameter.grad = None
        self.vae.objective.kl_weight = kl_weight
        loss = self.loss(batch)
        self.fabric.backward(loss)
        gradients = [parameter.grad for parameter in self.parameters]
        sums = [gradient.sum() for gradient in gradients if gradient is not None]
        total = torch.stack([loss.detach(), *sums]).sum()
        terms = {name: torch.as_tensor(value) for name, value in self.vae.objective.terms.items()}
        return Evaluated(loss.detach(), terms, gradients, total)


@dataclass(frozen=True)
class _Recording:
    play: Callable[..., dict[str, Any]]
    changes: list[Tensor]
    """What a playing changes, beside the gradients it returns."""


class RecordedStep:
    """Evaluates the same from recordings of plain steps, in which Python and Pyro have no part.

    A recording is made for each shape that mini-batches have, and checked against the plain step,
    with the same cells and the same noise, in the first, second, fourth ... and later in every
    128th step after. Where a step cannot be recorded, a recording turns out to say something else,
    or the programs keep numbers of their own from step to step, all further steps are plain ones,
    and a line is logged. On a GPU a recording is captured as a graph; if that fails it is played
    operation by operation, and a line is logged.

    Parameters
    ----------
    plain
        What to record.
    """

    def __init__(self, plain: PlainStep) -> None:
        self.plain = plain
        self.device = plain.parameters[0].device
        self.is_recording = self.device.type in {"cpu", "cuda"}
        self.is_capturing = self.device.type in CAPTURED_ON
        self._recordings: dict[Shape, _Recording] = {}
        self._n_seen: Counter[Shape] = Counter()
        self._modules = list(plain.vae.modules())
        self._buffers = list(plain.vae.buffers())

    def __call__(self, batch: CellBatch, kl_weight: Tensor) -> Evaluated:
        """Evaluate a mini-batch; leaves the gradients in the parameters."""
        shape = _shape(batch)
        self._n_seen[shape] += 1
        if not self.is_recording or self._n_seen[shape] <= RECORDED_AFTER:
            return self.plain(batch, kl_weight)
        recording = self._recordings.get(shape)
        if recording is None:
            return self._record(shape, batch, kl_weight)
        n_steps = self._n_seen[shape] - RECORDED_AFTER - 1  # since it was made
        if n_steps & (n_steps - 1) == 0 or n_steps % CHECKED_EVERY == 0:
            return self._checked(recording, batch, kl_weight)
        # A graph does all or nothing.
        may_change = [] if isinstance(recording.play, Captured) else recording.changes
        evaluated = self._played(recording, self._saved(may_change), batch, kl_weight)
        if evaluated is None:
            return self.plain(batch, kl_weight)
        for parameter, gradient in zip(self.plain.parameters, evaluated.gradients, strict=True):
            parameter.grad = gradient
        return evaluated

    def _saved(self, tensors: Sequence[Tensor]) -> Saved:
        return Saved(tensors, self.device)

    def _record(self, shape: Shape, batch: CellBatch, kl_weight: Tensor) -> Evaluated:
        """Take a plain step, and record it."""
        saved, kept = self._saved(self._buffers), fingerprint(self._modules)
        inputs = [kl_weight, *batch.tensors().values()]
        recorder = Recorder(inputs)
        try:
            with recorder.recording():
                evaluated = self.plain(batch, kl_weight)
        except Exception as error:  # by the step, and then it comes again, or by its recording
            saved.put_back()
            self._give_up(logging.INFO, f"recording a step failed ({error})")
            return self.plain(batch, kl_weight)
        own = changed(kept, fingerprint(self._modules))
        why = recorder.refusal or (own and f"a step changes {own}, which torch does not know of")
        if why is not None:
            self._give_up(logging.INFO, why)
            return evaluated
        outside = {id(tensor): tensor for tensor in [*self._buffers, *recorder.written]}
        try:
            play = recorder.playing(vars(evaluated))
        except Exception as error:  # not to be written as a program
            self._give_up(logging.INFO, f"recording a step failed ({error})")
            return evaluated
        changes = list(outside.values())
        if self.is_capturing and recorder.devices > {self.device.type}:
            # What a graph knows of them is what they were when it was captured.
            self._do_not_capture("there are tensors on other devices in a step")
        if self.is_capturing:
            play = self._captured(play, self._saved(changes), inputs)
        self._recordings[shape] = _Recording(play, changes)
        return evaluated

    def _captured(
        self, play: Callable[..., dict[str, Any]], saved: Saved, inputs: Sequence[Tensor]
    ) -> Callable[..., dict[str, Any]]:
        """Capture a recording, if it can be."""
        try:
            with torch.no_grad():
                return Captured(play, inputs)
        except Exception as error:  # CUDA and its libraries raise many kinds
            self._do_not_capture(str(error))
            return play
        finally:
            saved.put_back()

    def _do_not_capture(self, why: str) -> None:
        self.is_capturing = False
        logger.info("Recorded steps are not captured as a graph, which is slower: %s.", why)

    def _played(
        self, recording: _Recording, saved: Saved, batch: CellBatch, kl_weight: Tensor
    ) -> Evaluated | None:
        """Evaluate a mini-batch from a recording; ``None``, and nothing changed, if that fails."""
        try:
            with torch.no_grad():
                found = recording.play(kl_weight, *batch.tensors().values())
            return Evaluated(**found)
        except Exception as error:  # torch and its extensions raise many kinds
            saved.put_back()
            self._give_up(logging.WARNING, f"a recorded step failed ({error})")
            return None

    def _checked(self, recording: _Recording, batch: CellBatch, kl_weight: Tensor) -> Evaluated:
        """Take a plain step, and see whether the recording says the same."""
        saved = self._saved(recording.changes)
        played = self._played(recording, saved, batch, kl_weight)
        after = [tensor.detach().clone() for tensor in recording.changes]
        saved.put_back()
        kept = fingerprint(self._modules)
        evaluated = self.plain(batch, kl_weight)
        if played is None or not evaluated.total.isfinite():
            return evaluated
        own = changed(kept, fingerprint(self._modules))
        if own is not None:
            self._give_up(logging.WARNING, f"a step changes {own}, which torch does not know of")
        elif not (_agree(played, evaluated) and all(map(_near, after, recording.changes))):
            self._give_up(logging.WARNING, _DISAGREEMENT)
        return evaluated

    def _give_up(self, level: int, why: str) -> None:
        self.is_recording = False
        self._recordings.clear()
        logger.log(level, "Training takes plain steps, which are slower: %s.", why)


def _shape(batch: CellBatch) -> Shape:
    """Return what a recording holds for: the numbers of all but the non-zero counts."""
    return tuple(
        (name, tensor.dtype, None if name.endswith(OF_VARYING_SIZE) else tensor.shape)
        for name, tensor in batch.tensors().items()
    )


def _near(a: Tensor, b: Tensor, scale: Tensor | float = 1.0) -> bool:
    """Tell whether two tensors agree, up to what another order of sums makes of them."""
    a, b = a.detach().double(), b.detach().double()
    size = torch.maximum(b.norm(), torch.as_tensor(scale, device=b.device) * FLOOR)
    return bool((a - b).norm() <= TOLERANCE * size)


def _agree(played: Evaluated, plain: Evaluated) -> bool:
    """Tell whether two evaluations of a step agree."""
    pairs = list(zip(played.gradients, plain.gradients, strict=True))
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    gradients = [(a, b) for a, b in pairs if a is not None and b is not None]
    size = torch.stack([b.norm() for _, b in gradients]).norm()
    return (
        _near(played.loss, plain.loss)
        and played.terms.keys() == plain.terms.keys()
        and all(_near(played.terms[n], plain.terms[n], plain.loss.abs()) for n in plain.terms)
        and all(_near(a, b, size) for a, b in gradients)
    )
