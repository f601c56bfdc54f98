"""Nested dictionaries and lists as JSON, with their tensors apart, for safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SIMPLE = (bool, int, float, str, type(None))
_TENSOR, _ARRAY, _TABLE = "tensor", "array", "table"


def pack(value: object) -> tuple[Any, dict[str, Tensor]]:
    """Take a value apart.

    Parameters
    ----------
    value
        Numbers, text, tensors and NumPy arrays, in dictionaries, lists and tuples.

    Returns
    -------
    JSON, in which each tensor has a name, and the tensors by name.

    Raises
    ------
    TypeError
        If something else is in it; the error says where.
    """
    tensors: dict[str, Tensor] = {}
    return _packed(value, tensors, ()), tensors


def unpack(value: object, tensors: Mapping[str, Tensor]) -> Any:
    """Put together what :func:`pack` returned; tuples have become lists.

    Raises
    ------
    KeyError, TypeError, ValueError
        If it is something else.
    """
    if isinstance(value, _SIMPLE):
        return value
    if isinstance(value, list):
        return [unpack(each, tensors) for each in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise TypeError(f"a {type(value).__name__} is not packed")
    kind, content = next(iter(value.items()))
    if kind == _TABLE:
        return {key: unpack(each, tensors) for key, each in content}
    if kind == _TENSOR:
        return tensors[content]
    if kind == _ARRAY:
        return tensors[content].numpy()
    raise ValueError(f"there is no packed {kind!a}")


def _packed(value: object, tensors: dict[str, Tensor], where: tuple[object, ...]) -> Any:
    if type(value) in _SIMPLE:
        return value
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    if isinstance(value, Mapping) and all(type(key) in {str, int} for key in value):
        return {
            _TABLE: [[key, _packed(each, tensors, (*where, key))] for key, each in value.items()]
        }
    if isinstance(value, list | tuple):
        return [_packed(each, tensors, (*where, i)) for i, each in enumerate(value)]
    kind = _ARRAY if isinstance(value, np.ndarray) else _TENSOR
    if not isinstance(value, np.ndarray | Tensor):
        place = " > ".join(map(str, where))
        msg = f"{place}: a {type(value).__name__} cannot be written to a checkpoint"
        raise TypeError(msg)
    name = str(len(tensors))
    tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value.detach()
    # safetensors refuses tensors that share memory.
    tensors[name] = tensor.cpu().clone().contiguous()
    return {kind: name}
