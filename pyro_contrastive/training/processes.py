"""Several processes that train one model together: what they exchange, and how they end.

Every process has all the data and a copy of the model, and trains on its share of every step
(`splits.py`). The gradients are added up (`exchange.py`), so that all take the same step. They are
not taken care of by torch's ``DistributedDataParallel``, whose hooks a recorded step does not run.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import wraps
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor

from pyro_contrastive._tools.first_process import note_rank

TIMEOUT = timedelta(minutes=5)
"""How long a process waits for the others before it ends with an error."""
FAREWELL = 5.0
"""Seconds for which a process that failed stays, so that the others can read why."""
DRIFT = 1e-3
"""Relative difference between the weights of two processes that is not rounding any more."""
Value = TypeVar("Value")
Function = TypeVar("Function", bound=Callable[..., Any])
_n_trainings = 0


class ProcessesError(RuntimeError):
    """Processes cannot train together, or one of the others failed."""


class Processes:
    """The processes that train together, as one of them sees them; often it is the only one.

    Parameters
    ----------
    fabric
        A launched Fabric.

    Attributes
    ----------
    size, rank
        Number of processes, and the place of this one, counted from 0.
    is_interrupted
        Whether Ctrl-C was pressed inside :meth:`noting_interrupts`.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.size, self.rank = fabric.world_size, fabric.global_rank
        self.is_interrupted = False
        if self.size > 1:
            note_rank(self.rank)

    @property
    def is_first(self) -> bool:
        """Whether this process writes, logs and shows progress."""
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.size > 1:
            with self._waiting():
                dist.all_reduce(tensor)

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, in their order."""
        found: list[Any] = [value] * self.size
        if self.size > 1:
            with self._waiting():
                dist.all_gather_object(found, value)
        return found

    def of_first(self, value: Value) -> Value:
        """Return the value of the first process."""
        found = [value]
        if self.size > 1:
            with self._waiting():
                dist.broadcast_object_list(found, 0)
        return found[0]

    def share(self, items: Iterable[Value]) -> Iterator[Value]:
        """Yield this process's share of what all of them have: every n-th."""
        return islice(items, self.rank, None, self.size)

    def refuse_differences(self, digests: Mapping[str, str]) -> None:
        """Refuse to train together on different things.

        Parameters
        ----------
        digests
            By name of the thing, a text that differs if the thing does.

        Raises
        ------
        ProcessesError
            In all processes, with the names of what differs.
        """
        everywhere = self.gather(dict(digests))
        wrong = [name for name in digests if len({each.get(name) for each in everywhere}) > 1]
        if wrong:
            msg = (
                f"The {self.size} processes of this training differ in {', '.join(wrong)}. Every "
                "process must read the same data, make the same model and call train() with the "
                "same arguments; look for what depends on the process, or on unseeded random "
                "numbers, before train()."
            )
            raise ProcessesError(msg)

    @torch.no_grad()
    def give_those_of_first(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the values that tensors have in the first."""
        every = list(tensors)
        if self.size == 1 or not every:
            return
        flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in every])
        with self._waiting():
            dist.broadcast(flat, 0)
        parts = flat.split_with_sizes([tensor.numel() for tensor in every])
        for tensor, value in zip(every, parts, strict=True):
            tensor.copy_(value.view(tensor.shape))

    @torch.no_grad()
    def refuse_drift(self, parameters: Iterable[Tensor]) -> None:
        """Refuse to go on with weights that differ by more than rounding.

        Raises
        ------
        ProcessesError
            In all processes.
        """
        if self.size == 1:
            return
        sums = torch.stack([torch.stack([p.sum(), p.norm()]) for p in parameters]).double()
        found = self.gather(sums.cpu())
        if any(
            bool(((each - sums.cpu()).abs() > DRIFT * sums.cpu()[:, 1:]).any()) for each in found
        ):
            msg = (
                "The weights of the processes differ after the same steps, so their optimisers do "
                "not do the same: look for random numbers in yours (optimizer_creator)."
            )
            raise ProcessesError(msg)

    def draw_own_noise(self) -> None:
        """Start torch's random numbers from another seed in each process."""
        if self.size > 1:
            seed = int(torch.randint(2**31, ()))
            torch.manual_seed(seed + self.rank)

    @contextmanager
    def noting_interrupts(self) -> Iterator[None]:
        """Only note Ctrl-C inside, so that all processes stop after the same step.

        Those of one terminal get it at the same time, but not in the same step. Pressed once more,
        it ends this process at once.
        """
        if self.size == 1 or threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_: Any) -> None:
            if self.is_interrupted:
                raise KeyboardInterrupt
            self.is_interrupted = True

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """End all processes with an error if one fails inside; only the first logs and warns."""
        if self.size == 1:
            yield
            return
        global _n_trainings  # noqa: PLW0603  # counted in all processes, to tell one from the next
        _n_trainings += 1
        store = _store()
        logger = logging.getLogger("pyro_contrastive")
        level = logger.level
        try:
            with warnings.catch_warnings():
                if not self.is_first:
                    logger.setLevel(logging.ERROR)
                    warnings.simplefilter("ignore", UserWarning)
                yield
        except BaseException as error:
            with suppress(RuntimeError):  # the store ended with the process that keeps it
                if not isinstance(error, ProcessesError):
                    text = f"{type(error).__name__}: {error}"
                    store.set(_key("reason"), f"process {self.rank}: {text}")
                store.add(_key("ended"), 1)
            dist.destroy_process_group()  # the others wait no longer
            _wait_for_all(store, self.size)
            raise
        finally:
            logger.setLevel(level)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Explain failures of torch.distributed, each of whose backends has its own errors."""
        begun = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            seconds = time.monotonic() - begun
            raise ProcessesError(self._explain(seconds)) from error

    def _explain(self, seconds: float) -> str:
        reason = None
        with suppress(RuntimeError):
            if _store().check([_key("reason")]):
                reason = _store().get(_key("reason")).decode()
        if reason is not None:
            why = f"another one failed ({reason})"
        elif seconds >= TIMEOUT.total_seconds():
            why = f"another one did not answer for {TIMEOUT.total_seconds():g} seconds"
        else:
            why = "another one ended (killed, or out of memory?)"
        return f"Process {self.rank} of {self.size} (counted from 0) stops training, because {why}."


def ending_together(function: Function) -> Function:
    """Let a function that takes a `fabric` end in all processes if it fails in one."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with Processes(kwargs["fabric"]).ending_together():
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]  # of the same type


def shared_seed(fabric: Fabric, seed: int | None) -> int | None:
    """Return the seed of a training: without one, that of the first process, if there are more."""
    processes = Processes(fabric)
    if seed is not None or processes.size == 1:
        return seed
    return processes.of_first(int(torch.randint(2**31, ())))


def _store() -> Any:
    """Return the store in which the processes have met; it does not need the group."""
    return dist.distributed_c10d._get_default_store()


def _key(name: str) -> str:
    """Return the name of an entry of the store for this training."""
    return f"pyro_contrastive/{_n_trainings}/{name}"


def _wait_for_all(store: Any, n_processes: int) -> None:
    """Wait until all processes have ended the training, but not for long."""
    last = time.monotonic() + FAREWELL
    with suppress(RuntimeError):
        while time.monotonic() < last and store.add(_key("ended"), 0) < n_processes:
            time.sleep(0.05)
