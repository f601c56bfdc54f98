"""Registering functions as operators of torch.

A recorded training step consists of torch's operators: see `training.recorder`. Computations in
NumPy, or whose sizes depend on how many counts are zero, can only be recorded as one operator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

_make_library: Any = torch.library.Library  # untyped
# Operators vanish with the object that defined them, so a reloaded module keeps it.
_library: Any = globals().get("_library") or _make_library("pyro_contrastive", "DEF")
_functions: dict[str, Callable[..., Any]] = globals().get("_functions", {})


def define(schema: str, function: Callable[..., Any]) -> None:
    """Make ``torch.ops.pyro_contrastive.<name>`` of a function of tensors.

    Defining it again, as when a notebook reloads a module, replaces the function.

    Parameters
    ----------
    schema
        Name, arguments and results in torch's notation; ``(a!)`` marks an argument written to.
    function
        Its implementation on every device. It has no gradient: call it in an autograd function.
    """
    name = schema.partition("(")[0]
    is_new = name not in _functions
    _functions[name] = function
    if is_new:
        _library.define(schema)
        _library.impl(name, partial(_call, _functions, name), "CompositeExplicitAutograd")


def _call(functions: dict[str, Callable[..., Any]], name: str, *args: Any) -> Any:
    return functions[name](*args)
