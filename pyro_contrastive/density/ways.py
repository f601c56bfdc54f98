"""The choice of the way in which the log-density of a mini-batch is evaluated, and its log.

The decision has two steps, because the second one may start the compiler, which a program that only
samples should not wait for: :func:`can_fuse` when the distribution is made, and
:func:`can_use_rows` when its log-density is evaluated. The docstring of the package lists the ways.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TypeGuard

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_contrastive.density.heads import Heads
from pyro_contrastive.density.rows import kernel

MIN_ENTRIES = 2**15
"""Cells times genes below which compiled code does not repay the time it takes to load."""


class Way(StrEnum):
    """The ways of evaluating a log-density, fastest first."""

    rows = "compiled rows"
    tensors = "fused tensors"
    heads = "separate heads"


class _OnlyChanges(logging.Filter):
    """Drops a message that repeats the one before: a line for each change, not for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new, self.last = message != self.last, message
        return is_new


logger = logging.getLogger(__name__)
only_changes = _OnlyChanges()
logger.addFilter(only_changes)


def log_way(way: Way, obstacle: str | None = None) -> None:
    """Log at level DEBUG which way is taken, if it differs from the one before.

    Parameters
    ----------
    way
        The way.
    obstacle
        Why no faster way is possible.
    """
    reason = "" if obstacle is None else f", because {obstacle}"
    logger.debug("The log-density of counts is evaluated by %s%s.", way.value, reason)


def can_fuse(
    heads: Mapping[str, Tensor], names: Sequence[str], library: Tensor
) -> TypeGuard[Heads]:
    """Tell whether layer, softmax and density can be one function; log the obstacle if not.

    Parameters
    ----------
    heads
        The decoder's output.
    names
        The heads that the density depends on.
    library
        Library size, ``[..., cells, 1]``.
    """
    obstacle = _obstacle_to_fusing(heads, names, library)
    if obstacle is not None:
        log_way(Way.heads, obstacle)
    return obstacle is None


def _obstacle_to_fusing(
    heads: Mapping[str, Tensor], names: Sequence[str], library: Tensor
) -> str | None:
    if not isinstance(heads, Heads):
        return "the likelihood's decode returned heads that are evaluated already"
    if (obstacle := heads.obstacle(names)) is not None:
        return obstacle
    if heads.hidden.dim() != 2 or heads.hidden.shape[:-1] != library.shape[:-1]:  # noqa: PLR2004  # cells and hidden units
        return "the latents have an axis of draws"
    if dist.is_validation_enabled():
        return "Pyro's validation is on, which reads the heads"
    if torch.is_autocast_enabled(library.device.type):
        return "torch's autocast is on"
    return None


def can_use_rows(value: Tensor, scale: Tensor, library: Tensor, t: Tensor) -> bool:
    """Tell whether compiled code can evaluate these and is worth it; log the way that is taken.

    Parameters
    ----------
    value, scale, library, t
        Counts and logits of the scale, ``[cells, genes]``; library size, ``[cells, 1]``; inverse
        dispersion.
    """
    obstacle = _obstacle_to_rows(value, scale, library, t)
    log_way(Way.rows if obstacle is None else Way.tensors, obstacle)
    return obstacle is None


def _obstacle_to_rows(value: Tensor, scale: Tensor, library: Tensor, t: Tensor) -> str | None:
    if value.numel() < MIN_ENTRIES:
        return f"the mini-batch has fewer than {MIN_ENTRIES} entries"
    if value.device.type != "cpu":
        return f"the counts are on a device of type {value.device.type}"
    dtypes = {a.dtype for a in (value, scale, library, t)}
    if dtypes != {torch.float32}:
        return f"not everything is float32: {', '.join(sorted(map(str, dtypes)))}"
    if t.shape != value.shape[1:]:
        return "the inverse dispersion is not one number per gene"
    if kernel() is None:  # asked last: it imports numba and may compile
        return "numba cannot be used"
    return None
