"""Functions that torch cannot look into, given to it as operators of its own.

A recorded step is made of torch's operators: see `training.recorder`. It knows nothing of what
NumPy does, and cannot repeat what depends on how many counts are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

_make_library: Any = torch.library.Library  # untyped
# What a library defines goes when it goes; reloaded, this module keeps the one it has.
_library: Any = globals().get("_library") or _make_library("pyro_contrastive", "DEF")
_functions: dict[str, Callable[..., Any]] = globals().get("_functions", {})


def define(schema: str, function: Callable[..., Any]) -> None:
    """Make ``torch.ops.pyro_contrastive.<name>`` of a function of tensors.

    Done again, as when a notebook reloads a module, it replaces the function.

    Parameters
    ----------
    schema
        Name, arguments and results, as torch writes them; ``(a!)`` marks what is written to.
    function
        What it does, on every device. It has no gradient: call it inside an autograd function.
    """
    name = schema.partition("(")[0]
    is_new = name not in _functions
    _functions[name] = function
    if is_new:
        _library.define(schema)
        _library.impl(name, partial(_call, _functions, name), "CompositeExplicitAutograd")


def _call(functions: dict[str, Callable[..., Any]], name: str, *args: Any) -> Any:
    return functions[name](*args)
