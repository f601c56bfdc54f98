"""Functions outside of torch, given to torch as operators of its own.

What torch does not dispatch, a recorded step does not know of: see `training.recorder`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library: Any = torch.library.Library  # untyped
_library = _library("pyro_contrastive", "DEF")  # what it defines goes when it goes


def define(schema: str, function: Callable[..., Any]) -> None:
    """Make ``torch.ops.pyro_contrastive.<name>`` of a function of tensors.

    Parameters
    ----------
    schema
        Name, arguments and results, as torch writes them; ``(a!)`` marks what is written to.
    function
        What it does. It has no gradient: call it inside an autograd function.
    """
    name = _library.define(schema)
    _library.impl(name, function, "CompositeExplicitAutograd")  # on every device
