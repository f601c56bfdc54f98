"""Small contexts for torch: seeded random numbers, evaluation mode, reuse of memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_contrastive._tools.pyro_names import unregistered
from pyro_contrastive._tools.threads import one_thread

# From glibc's malloc.h; by itself it raises the threshold to 32 MiB at most.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST, _ADAPTED = 2**31 - 1, 32 * 2**20
_reusing: ContextVar[bool] = ContextVar("reusing", default=False)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw torch's random numbers from `seed` inside, and leave the global state as it was.

    With ``None`` the global state (``pyro.set_rng_seed``) is used and advanced. In either case no
    other thread draws from it inside: see :func:`~pyro_contrastive._tools.threads.one_thread`.
    """
    if seed is None:
        with one_thread():
            yield
        return
    with one_thread(), torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def random_state(state: Tensor | None) -> Iterator[None]:
    """Start from a state of torch's random numbers on the CPU inside; ``None``: from the present.

    With a state, the global one is as it was afterwards.
    """
    if state is None:
        yield
        return
    with torch.random.fork_rng():
        torch.set_rng_state(state)
        yield


def tensor_of(array: NDArray[Any]) -> Tensor:
    """Return a tensor on the memory of a NumPy array, or on a copy of it if it is read-only.

    Arrays from pandas 3 and memory-mapped files are read-only. torch would warn that writing to the
    tensor is undefined, although nothing here writes to it.
    """
    return torch.as_tensor(array if array.flags.writeable else array.copy())


def numpy_rng() -> np.random.Generator:
    """Make a NumPy generator, seeded by torch's global random state (which it advances)."""
    return np.random.default_rng(int(torch.randint(2**62, ()).item()))


@contextmanager
def own_params() -> Iterator[None]:
    """Keep what runs inside out of Pyro's global parameter store.

    Everything registered there, a model and its GPU memory included, stays alive until the process
    ends. The store is that of all threads, so only one of them is inside at a time.
    """
    with one_thread(), pyro.get_param_store().scope(), unregistered():
        yield


class tensors_for_items(TorchFunctionMode):  # noqa: N801  # a context manager, like the others
    """Let ``tensor.item()`` return a tensor inside, without gradient.

    Pyro's ELBOs add up such numbers. Each of them would wait for a GPU, and the loss would not be a
    function of tensors, which a recorded step must be.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call torch's function, but leave the result of ``item`` on its device."""
        if func is Tensor.item:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


@contextmanager
def reused_memory() -> Iterator[None]:
    """Keep freed memory in the process inside, to be used again by the next step.

    A step allocates about a hundred megabytes in pieces of a few. The C library returns such pieces
    to the system when they are freed, and the system fills them with zeros, page by page, when they
    are allocated again, which takes a quarter of the time of a step. With glibc (Linux) all freed
    memory is kept inside; afterwards the limits are the largest that glibc would set by itself.
    Within another such context this one does nothing.
    """
    mallopt, trim = _glibc()
    if mallopt is None or trim is None or _reusing.get():
        yield
        return
    token = _reusing.set(True)
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        _reusing.reset(token)
        mallopt(_MMAP_THRESHOLD, _ADAPTED)
        mallopt(_TRIM_THRESHOLD, 2 * _ADAPTED)
        trim(0)


def _glibc() -> tuple[Any, Any]:
    """Return glibc's functions that set limits and return memory; ``None`` elsewhere."""
    if not sys.platform.startswith("linux"):
        return None, None
    library = ctypes.CDLL(None)
    return getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Switch off gradients, dropout and updates of batch-norm statistics; restore the mode after.

    Memory is reused inside, as by :func:`reused_memory`. Only one thread is inside at a time.
    """
    with one_thread():
        was_training = [(m, m.training) for module in modules for m in module.modules()]
        for module in modules:
            module.eval()
        try:
            with torch.no_grad(), own_params(), reused_memory():
                yield
        finally:
            for m, mode in was_training:
                m.training = mode


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let no parameter require a gradient inside: none is computed for the sake of one."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
