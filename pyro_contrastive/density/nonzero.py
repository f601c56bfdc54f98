"""The non-zero entries of counts, found once for every tensor of them."""

from __future__ import annotations

from typing import NamedTuple, Self

from torch import Tensor

from pyro_contrastive.observed.observation import SparseValues

SMALL_COUNT = 15
"""Largest count that is looked up in a table of every gene."""
GATHERED_ON = {"cpu"}
"""Types of devices on which non-zero entries are gathered.

The number of non-zero entries is needed to gather them. On a GPU, asking for it would make the
program wait for the device, and the step could not be captured as a graph.
"""


def is_gathered(value: Tensor) -> bool:
    """Tell whether the non-zero entries of these counts are evaluated separately."""
    return value.device.type in GATHERED_ON


class NonZero(NamedTuple):
    """The non-zero entries of a tensor of counts, which stay the same while parameters change.

    ``flat`` and ``last`` are their positions in the flattened tensor and along the last axis, ``x``
    their values in float64, ``entry`` their positions in the table of small counts, and ``large``
    the indices of those that are not in the table.
    """

    flat: Tensor
    last: Tensor
    x: Tensor
    entry: Tensor
    large: Tensor

    @classmethod
    def of(cls, value: Tensor, at: tuple[Tensor, Tensor] | None = None) -> Self:
        """Find the non-zero entries; ``at``: their positions ``flat`` and ``last``, if known."""
        every = value.reshape(-1)
        n_last = value.shape[-1] if value.dim() else 1
        if at is None:
            # NaN and negative counts, where validation is off, must give NaN: treat them as
            # non-zero.
            flat = (every != 0).nonzero().squeeze(-1)
            at = flat, flat % max(n_last, 1)
        flat, last = at
        x = every.index_select(0, flat).double()
        count = x.clamp(0, SMALL_COUNT).nan_to_num_()
        # Above the table, or not a whole number, which only validation would have refused.
        large = (count.floor() != x).nonzero().squeeze(-1)
        return cls(flat, last, x, count.long().mul_(n_last).add_(last), large)


def nonzero_of(value: Tensor) -> NonZero:
    """Find the non-zero counts; those of :class:`SparseValues` once, and without a search."""
    if isinstance(value, SparseValues) and value.is_unchanged:
        return value.once(_of_sparse)
    return NonZero.of(value)


def _of_sparse(value: SparseValues) -> NonZero:
    row, column = value.positions()
    return NonZero.of(value, (row * value.shape[1] + column, column))
