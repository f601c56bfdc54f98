"""The epochs of a run, and its state between two of them, from which it can be continued."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import pyro
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from pyro_contrastive._tools.random_states import random_states, set_random_states
from pyro_contrastive._tools.torch_tools import own_params, reused_memory
from pyro_contrastive.training.finite import no_nan_warnings
from pyro_contrastive.training.history import History
from pyro_contrastive.training.loss_watch import LossWatch
from pyro_contrastive.training.progress import EpochBar
from pyro_contrastive.training.run import Run

State = Mapping[str, Any]
"""Numbers, text, tensors and NumPy arrays, in dictionaries and lists."""


class Checkpoints(Protocol):
    """Where the states of a run are written, and the one to continue from."""

    @property
    def resumed(self) -> State | None:
        """The state to continue from; ``None``: start anew."""

    def is_due(self, n_epochs: int, *, is_last: bool) -> bool:
        """Return whether to write the state after so many epochs of the run."""

    def write(self, state: State, n_epochs: int, *, is_last: bool) -> None:
        """Write the state after so many epochs."""


class Epochs:
    """Trains epoch by epoch.

    Parameters
    ----------
    run
        What stays the same from step to step.
    history
        Filled during training.
    begun
        When the run began, by ``time.perf_counter``.
    """

    def __init__(self, run: Run, history: History, begun: float) -> None:
        self.run, self.history = run, history
        self.n_done = 0
        self.stopped = False
        self.watch = LossWatch(run.plan.lr, run.vae)
        self._earlier_seconds = 0.0
        self._begun = begun

    @property
    def seconds(self) -> float:
        """Wall time of the run, also before it was continued."""
        return self._earlier_seconds + time.perf_counter() - self._begun

    def train(self, checkpoints: Checkpoints | None) -> None:
        """Train until the last epoch, or until early stopping ends the run."""
        settings, history, processes = self.run.settings, self.history, self.run.processes
        shows_progress = settings.progress_bar and processes.is_first
        with (
            EpochBar(settings.max_epochs, self.n_done, show=shows_progress) as bar,
            pyro.validation_enabled(False),  # checked before training: see `check_programs`
            no_nan_warnings(),
            reused_memory(),
            own_params(),
        ):
            while self.n_done < settings.max_epochs and not self.stopped:
                is_check = settings.is_check(self.n_done)
                values = self.run.train_epoch(self.n_done)
                values |= self.run.validate() if is_check else {}
                values = processes.of_first(values)  # what follows from them is decided alike
                self.run.lower_learning_rate(values)
                history.add_epoch(values)
                self.watch.check(values, history.n_epochs - 1)
                bar.advance(values)
                self.stopped = is_check and self._is_enough(values)
                self.n_done += 1
                if checkpoints is not None:
                    is_last = self.stopped or self.n_done == settings.max_epochs
                    self.keep(checkpoints, is_last=is_last)
            if self.stopped and settings.early_stopping is not None:
                bar.stop_early(settings.early_stopping.best_epoch)

    def _is_enough(self, values: Mapping[str, float]) -> bool:
        """Tell whether early stopping ends the run, given the values of the present epoch."""
        stopping = self.run.settings.early_stopping
        return (
            stopping is not None
            and stopping.monitor in values
            and self.run.may_stop(stopping, self.n_done)
            and stopping.update(values, self.run.vae, self.history.n_epochs - 1)
        )

    def keep(self, checkpoints: Checkpoints, *, is_last: bool) -> None:
        """Have the first process write the state, if it is time to."""
        processes = self.run.processes
        if processes.of_first(checkpoints.is_due(self.n_done, is_last=is_last)):
            state = self.state()
            if processes.is_first:
                checkpoints.write(state, self.n_done, is_last=is_last)

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on; of several processes, in each."""
        run = self.run
        own = {"updates": run.updates.state_dict(), "random": random_states(run.fabric.device)}
        stopping = run.settings.early_stopping
        return {
            "n_done": self.n_done,
            "stopped": self.stopped,
            "seconds": self.seconds,
            "step": run.step,
            "refreshed_at": run.refreshed_at,
            "history": self.history.to_json(),
            "weights": run.vae.state_dict(),
            "other_parameters": [p.detach() for p in run.other_parameters],
            "optimizer": {"class": _name(run.updates.optimizer)}
            | run.updates.optimizer.state_dict(),
            "schedulers": [_schedule(each) for each in (run.scheduler, run.cycle)],
            "early_stopping": None if stopping is None else stopping.state_dict(),
            "loss_watch": self.watch.state_dict(),
            "order": run.batches.state_dict(),
            "of_processes": run.processes.gather(own),
        }

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Continue from a state of the same run, made by the same code and settings.

        Raises
        ------
        ValueError
            If the optimiser is of another class.
        """
        run = self.run
        optimizer = dict(state["optimizer"])
        kind = optimizer.pop("class")
        if kind != _name(run.updates.optimizer):
            msg = (
                f"The checkpoint is of a run with the optimiser {kind}, and this one has "
                f"{_name(run.updates.optimizer)}: continue it with the same optimizer_creator."
            )
            raise ValueError(msg)
        run.vae.load_state_dict(state["weights"])
        run.updates.optimizer.load_state_dict(optimizer)
        _lay_out_as_parameters(run.updates.optimizer)
        for parameter, value in zip(run.other_parameters, state["other_parameters"], strict=True):
            parameter.copy_(value)
        for scheduler, found in zip((run.scheduler, run.cycle), state["schedulers"], strict=True):
            if scheduler is not None:
                scheduler.load_state_dict(found)
        if run.settings.early_stopping is not None:
            run.settings.early_stopping.load_state_dict(state["early_stopping"])
        self.watch.load_state_dict(state["loss_watch"])
        run.batches.load_state_dict(state["order"])
        own = state["of_processes"][run.processes.rank]
        run.updates.load_state_dict(own["updates"])
        run.step, run.refreshed_at = state["step"], state["refreshed_at"]
        self.history.replace(state["history"])
        self.n_done, self.stopped = state["n_done"], state["stopped"]
        self._earlier_seconds = state["seconds"]
        set_random_states(own["random"], run.fabric.device)


def _name(optimizer: torch.optim.Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give each moment the order in memory of its parameter, as a fused optimiser expects.

    Weights of encoders are stored by gene, and a file holds every tensor row by row.
    """
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _schedule(scheduler: LRScheduler | None) -> dict[str, Any] | None:
    """Return what a scheduler counts; the plan has the rest."""
    if scheduler is None:
        return None
    kinds = (int, float, str, list)
    state = scheduler.state_dict()
    counted = {name: value for name, value in state.items() if isinstance(value, kinds)}
    return {k: v for k, v in counted.items() if k != "_schedule_phases"}
