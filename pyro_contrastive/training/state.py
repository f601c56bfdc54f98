"""What a step may change beside gradients: to be put back, or to be noticed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DEPTH = 3
"""How deep into lists and dictionaries of a module is looked."""
LARGE = 2**20
"""Bytes from which on an array is not compared: it takes too long."""


class Saved:
    """Values of tensors, and the state of torch's random numbers, to be put back.

    Parameters
    ----------
    tensors
        Which tensors.
    device
        Whose random numbers, beside those of the CPU.
    """

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self._tensors = tensors
        self._values = [tensor.detach().clone() for tensor in tensors]
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def put_back(self) -> None:
        """Make everything what it was."""
        for tensor, value in zip(self._tensors, self._values, strict=True):
            tensor.copy_(value)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


def fingerprint(modules: Iterable[nn.Module]) -> dict[str, Any]:
    """Describe what Python code may keep between steps, so that a change shows.

    That is random numbers of Python and of NumPy, and what modules have for attributes: numbers and
    the like by value, in lists and dictionaries too, and tensors by their identity, for what is
    written into them torch knows of.
    """
    found: dict[str, Any] = {
        "random numbers of Python": random.getstate(),
        "random numbers of NumPy": _describe(np.random.get_state(), DEPTH),  # noqa: NPY002  # theirs
    }
    for module in modules:
        for name, value in vars(module).items():
            key = f"attribute {name!r} of {type(module).__name__} (at {id(module):x})"
            found[key] = _describe(value, DEPTH)
    return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Name something that is not what it was, or return ``None``."""
    for key in before.keys() | after.keys():
        if before.get(key, _nothing) != after.get(key, _nothing):
            return key.partition(" (at ")[0]
    return None


_nothing = object()


def _describe(value: Any, depth: int) -> Any:
    if depth and isinstance(value, dict):
        return [(str(key), _describe(item, depth - 1)) for key, item in value.items()]
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_describe(item, depth - 1) for item in value]
    for kinds, describe in _KINDS:
        if isinstance(value, kinds):
            return describe(value)
    return id(value)


_KINDS: list[tuple[Any, Callable[[Any], Any]]] = [
    (Tensor, lambda t: (id(t), t.data_ptr() if t.layout == torch.strided else None)),
    ((bool, int, float, complex, str, bytes), repr),  # as text, NaN is equal to itself
    (np.ndarray, lambda a: hash(a.tobytes()) if a.nbytes < LARGE else id(a)),
    (np.random.Generator, lambda generator: repr(generator.bit_generator.state)),
    (random.Random, lambda generator: hash(generator.getstate())),
]
