"""A bound on the memory that loading a model can use: a few bytes could ask for any amount."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_contrastive._tools.invalid_file import InvalidFileError

FREE_NUMBERS = 2**26
"""Numbers that are always allowed: a quarter of a gigabyte in single precision."""
FREE_CALLS = 10_000
PER_TENSOR = 100
"""Calls of torch that are allowed for each saved tensor; a layer takes about ten."""


class as_large_as(TorchFunctionMode):  # noqa: N801  # a context manager
    """Refuse to allocate much more inside than was saved.

    Every tensor that training changes is among the weights, so an unmodified model takes a small
    multiple of them. The check comes before the memory is allocated.

    Parameters
    ----------
    weights
        The saved tensors.

    Raises
    ------
    InvalidFileError
        Inside, before a tensor that is too large is made.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._n_saved = sum(weight.numel() for weight in weights.values())
        self._limit = FREE_NUMBERS + 10 * self._n_saved
        self._numbers_left = self._limit
        self._calls_left = FREE_CALLS + PER_TENSOR * len(weights)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call torch's function unless its result is too large."""
        kwargs = kwargs or {}
        self._numbers_left -= _size_asked_for(args, kwargs)
        self._calls_left -= 1
        if min(self._numbers_left, self._calls_left) < 0 or _size_together(args) > self._limit:
            msg = (
                f"The configuration asks for a model that is far larger than the {self._n_saved} "
                "numbers that were saved as its weights: a file was changed after it was saved."
            )
            raise InvalidFileError(msg)
        return func(*args, **kwargs)


def _size_asked_for(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Count the elements of what a call such as ``torch.zeros(3, 4)`` makes."""
    if "steps" in kwargs:  # torch.linspace
        return int(kwargs["steps"])
    size = kwargs.get("size", args[0] if args and isinstance(args[0], (tuple, list)) else args)
    whole = [n for n in size if type(n) is int] if isinstance(size, (tuple, list)) else []
    return math.prod(whole) if len(whole) == len(size) and whole else 0


def _size_together(args: tuple[Any, ...]) -> int:
    """Count the elements of what a call makes of two tensors, such as a row and a column."""
    shapes = [a.shape for a in args[:2] if isinstance(a, Tensor)]
    try:
        return math.prod(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError:  # they do not broadcast, as in a product of matrices
        return 0
