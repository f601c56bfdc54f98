"""What a step may change besides gradients: saved to be restored, or described to be compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DEPTH = 3
"""Depth to which :func:`fingerprint` follows lists and dictionaries of a module."""
LARGE = 2**20
"""Size in bytes from which on arrays are not compared, because that takes too long."""


class Saved:
    """Values of tensors and the state of torch's random numbers, to be restored.

    Parameters
    ----------
    tensors
        The tensors.
    device
        Device whose random numbers are saved, in addition to those of the CPU.
    """

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self._tensors = tensors
        self._values = [tensor.detach().clone() for tensor in tensors]
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def restore(self) -> None:
        """Restore everything."""
        for tensor, value in zip(self._tensors, self._values, strict=True):
            tensor.copy_(value)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


def fingerprint(modules: Iterable[nn.Module]) -> dict[str, Any]:
    """Describe what Python code may keep between steps, so that changes can be found.

    That is the state of the random numbers of Python and of NumPy, and the attributes of modules:
    numbers, text and arrays by value, also in lists and dictionaries. Tensors are described by
    identity, because torch sees what is written into them.
    """
    found: dict[str, Any] = {
        "random numbers of Python": random.getstate(),
        "random numbers of NumPy": _describe(np.random.get_state(), DEPTH),  # noqa: NPY002  # of user code
    }
    for module in modules:
        for name, value in vars(module).items():
            key = f"attribute {name!r} of {type(module).__name__} (at {id(module):x})"
            found[key] = _describe(value, DEPTH)
    return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Return the name of something that changed, or ``None``."""
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
    ((bool, int, float, complex, str, bytes), repr),  # as text, NaN equals itself
    (np.ndarray, lambda a: hash(a.tobytes()) if a.nbytes < LARGE else id(a)),
    (np.random.Generator, lambda generator: repr(generator.bit_generator.state)),
    (random.Random, lambda generator: hash(generator.getstate())),
]
