"""Loss and gradients of a mini-batch: by running the Pyro programs, or from a recording of that."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
"""Steps of one shape before it is recorded: recording costs as much as this many replays save."""
CHECKED_EVERY = 128
"""A recording is checked in every step whose number since it was made is a multiple of this."""
TOLERANCE, FLOOR = 1e-5, 1e-4
"""Tolerance of a check: relative error of a tensor; and the smallest norm to which it is relative,
as a share of the loss or of the norm of the whole gradient."""
_DISAGREEMENT = (
    "a replayed step does not have the result of the plain one, so model, guide or a penalty does "
    "something that torch does not see (random numbers from elsewhere, seeds set inside, numbers "
    "that change from step to step). Steps since the last check may be wrong too: train with "
    "plan_kwargs={'record_steps': False}"
)
Shape = tuple[tuple[str, torch.dtype, torch.Size | None], ...]


@dataclass(frozen=True)
class Evaluated:
    """The results of a step.

    Parameters
    ----------
    loss
        The loss, penalties included.
    terms
        Its parts; see :attr:`ContrastiveELBO.terms`.
    gradients
        Of each parameter; ``None`` where the loss does not depend on it.
    total
        A sum that is finite if the loss and all gradients are.
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
        The model in training.
    loss
        A module whose forward is the loss, as set up by Fabric.
    fabric
        Device and precision.
    parameters
        Parameters to differentiate by; their dtype is that of the loss.
    """

    def __init__(
        self, vae: ContrastiveVAE, loss: nn.Module, fabric: Fabric, parameters: Sequence[Tensor]
    ) -> None:
        self.vae = vae
        self.loss = loss
        self.fabric = fabric
        self.parameters = list(parameters)

    def tensor(self, kl_weight: float) -> Tensor:
        """Return the weight as a tensor on the device, so that a recording has it as an input."""
        like = self.parameters[0]
        return torch.full((), kl_weight, dtype=like.dtype, device=like.device)

    def __call__(self, batch: CellBatch, kl_weight: Tensor) -> Evaluated:
        """Evaluate a mini-batch; the gradients are left in the parameters."""
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
    replay: Callable[..., dict[str, Any]]
    changes: list[Tensor]
    """Tensors that a replay writes to, besides the gradients it returns."""


class RecordedStep:
    """Evaluates mini-batches by replaying recordings of plain steps, without Python or Pyro.

    A recording is made for each shape of mini-batches. It is checked against the plain step, with
    the same cells and the same noise, in the first, second, fourth ... step after it was made, and
    later in every 128th. If a step cannot be recorded, if a recording disagrees, or if the programs
    keep values of their own from step to step, all further steps are plain, and a line is logged.
    On a GPU a recording is captured as a CUDA graph; if that fails it is replayed operation by
    operation, and a line is logged.

    Parameters
    ----------
    plain
        The step to record.
    """

    def __init__(self, plain: PlainStep) -> None:
        self.plain = plain
        self.device = plain.parameters[0].device
        self.is_recording = self.device.type in {"cpu", "cuda"}
        self.is_capturing = self.device.type in CAPTURED_ON
        self._recordings: dict[Shape, _Recording] = {}
        self._n_seen: Counter[Shape] = Counter()
        self._n_before: Mapping[str, int] = {}  # seen before the run was continued
        self._modules = list(plain.vae.modules())
        self._buffers = list(plain.vae.buffers())

    def __call__(self, batch: CellBatch, kl_weight: Tensor) -> Evaluated:
        """Evaluate a mini-batch; the gradients are left in the parameters."""
        shape = _shape(batch)
        if shape not in self._n_seen:
            self._n_seen[shape] = self._n_before.get(repr(shape), 0)
        self._n_seen[shape] += 1
        if not self.is_recording or self._n_seen[shape] <= RECORDED_AFTER:
            return self.plain(batch, kl_weight)
        recording = self._recordings.get(shape)
        if recording is None:
            before = self._saved(self._buffers)
            recorded = self._record(shape, batch, kl_weight)
            recording = self._recordings.get(shape)
            if recording is None or self._n_seen[shape] == RECORDED_AFTER + 1:
                return recorded
            before.restore()  # the run was continued: this step was not the one that is recorded
        n_steps = self._n_seen[shape] - RECORDED_AFTER - 1  # since it was made
        if n_steps & (n_steps - 1) == 0 or n_steps % CHECKED_EVERY == 0:
            return self._checked(recording, batch, kl_weight)
        # A graph runs as a whole or not at all, so there is nothing to put back if it fails.
        may_change = [] if isinstance(recording.replay, Captured) else recording.changes
        evaluated = self._replayed(recording, self._saved(may_change), batch, kl_weight)
        if evaluated is None:
            return self.plain(batch, kl_weight)
        for parameter, gradient in zip(self.plain.parameters, evaluated.gradients, strict=True):
            parameter.grad = gradient
        return evaluated

    def state_dict(self) -> dict[str, Any]:
        """Return how often each shape was seen, and whether steps are still recorded."""
        n_seen = {repr(shape): n for shape, n in self._n_seen.items()}
        return {"is_recording": self.is_recording, "n_seen": {**self._n_before, **n_seen}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned.

        A step that was recorded then is recorded again when its shape is next seen, and replayed
        as it would have been: a replay may differ from a plain step in the last digits.
        """
        self.is_recording &= state["is_recording"]
        self._n_before = state["n_seen"]

    def _saved(self, tensors: Sequence[Tensor]) -> Saved:
        return Saved(tensors, self.device)

    def _record(self, shape: Shape, batch: CellBatch, kl_weight: Tensor) -> Evaluated:
        """Evaluate a plain step, and record it."""
        saved, kept = self._saved(self._buffers), fingerprint(self._modules)
        inputs = [kl_weight, *batch.tensors().values()]
        recorder = Recorder(inputs)
        try:
            with recorder.recording():
                evaluated = self.plain(batch, kl_weight)
        except Exception as error:  # if the step itself raises, it does so again below
            saved.restore()
            self._give_up(logging.INFO, f"recording a step failed ({error})")
            return self.plain(batch, kl_weight)
        own = changed(kept, fingerprint(self._modules))
        why = recorder.refusal or (own and f"a step changes {own}, which torch does not see")
        if why is not None:
            self._give_up(logging.INFO, why)
            return evaluated
        outside = {id(tensor): tensor for tensor in [*self._buffers, *recorder.written]}
        try:
            replay = recorder.replay_of(vars(evaluated))
        except Exception as error:  # the operations cannot be written as a program
            self._give_up(logging.INFO, f"recording a step failed ({error})")
            return evaluated
        changes = list(outside.values())
        if self.is_capturing and recorder.devices > {self.device.type}:
            # A graph would keep the values that they had when it was captured.
            self._do_not_capture("there are tensors on other devices in a step")
        if self.is_capturing:
            replay = self._captured(replay, self._saved(changes), inputs)
        self._recordings[shape] = _Recording(replay, changes)
        return evaluated

    def _captured(
        self, replay: Callable[..., dict[str, Any]], saved: Saved, inputs: Sequence[Tensor]
    ) -> Callable[..., dict[str, Any]]:
        """Return a recording captured as a graph, or the recording itself if that fails."""
        try:
            with torch.no_grad():
                return Captured(replay, inputs)
        except Exception as error:  # CUDA and its libraries raise many kinds
            self._do_not_capture(str(error))
            return replay
        finally:
            saved.restore()

    def _do_not_capture(self, why: str) -> None:
        self.is_capturing = False
        logger.info("Recorded steps are not captured as a CUDA graph, which is slower: %s.", why)

    def _replayed(
        self, recording: _Recording, saved: Saved, batch: CellBatch, kl_weight: Tensor
    ) -> Evaluated | None:
        """Evaluate a mini-batch from a recording; if that fails, undo it and return ``None``."""
        try:
            with torch.no_grad():
                found = recording.replay(kl_weight, *batch.tensors().values())
            return Evaluated(**found)
        except Exception as error:  # torch and its extensions raise many kinds
            saved.restore()
            self._give_up(logging.WARNING, f"a recorded step failed ({error})")
            return None

    def _checked(self, recording: _Recording, batch: CellBatch, kl_weight: Tensor) -> Evaluated:
        """Evaluate a plain step, and compare the recording with it."""
        saved = self._saved(recording.changes)
        replayed = self._replayed(recording, saved, batch, kl_weight)
        after = [tensor.detach().clone() for tensor in recording.changes]
        saved.restore()
        kept = fingerprint(self._modules)
        evaluated = self.plain(batch, kl_weight)
        if replayed is None or not evaluated.total.isfinite():
            return evaluated
        own = changed(kept, fingerprint(self._modules))
        if own is not None:
            self._give_up(logging.WARNING, f"a step changes {own}, which torch does not see")
        elif not (_agree(replayed, evaluated) and all(map(_close, after, recording.changes))):
            self._give_up(logging.WARNING, _DISAGREEMENT)
        return evaluated

    def _give_up(self, level: int, why: str) -> None:
        self.is_recording = False
        self._recordings.clear()
        logger.log(level, "Training takes plain steps, which are slower: %s.", why)


def _shape(batch: CellBatch) -> Shape:
    """Return the key of a recording: all sizes but the number of non-zero counts, which varies."""
    return tuple(
        (name, tensor.dtype, None if name.endswith(OF_VARYING_SIZE) else tensor.shape)
        for name, tensor in batch.tensors().items()
    )


def _close(a: Tensor, b: Tensor, scale: Tensor | float = 1.0) -> bool:
    """Return whether two tensors agree, up to the rounding of sums in another order."""
    a, b = a.detach().double(), b.detach().double()
    size = torch.maximum(b.norm(), torch.as_tensor(scale, device=b.device) * FLOOR)
    return bool((a - b).norm() <= TOLERANCE * size)


def _agree(replayed: Evaluated, plain: Evaluated) -> bool:
    """Return whether two evaluations of a step agree."""
    pairs = list(zip(replayed.gradients, plain.gradients, strict=True))
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    gradients = [(a, b) for a, b in pairs if a is not None and b is not None]
    size = torch.stack([b.norm() for _, b in gradients]).norm()
    return (
        _close(replayed.loss, plain.loss)
        and replayed.terms.keys() == plain.terms.keys()
        and all(_close(replayed.terms[n], plain.terms[n], plain.loss.abs()) for n in plain.terms)
        and all(_close(a, b, size) for a, b in gradients)
    )
