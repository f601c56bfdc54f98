"""The non-zero entries of counts, found once for every tensor of them."""

from __future__ import annotations

from typing import NamedTuple, Self

from torch import Tensor

from pyro_contrastive.observed.observation import SparseValues

SMALL_COUNT = 15
"""Whole counts up to this are looked up in tables of every gene."""
GATHERED_ON = {"cpu"}
"""Types of devices on which non-zero entries are gathered.

Others would have to be waited for, to hear how many there are, and a step that asks could not be
captured.
"""


def is_gathered(value: Tensor) -> bool:
    """Tell whether the non-zero entries of these counts are evaluated apart from the others."""
    return value.device.type in GATHERED_ON


class NonZero(NamedTuple):
    """The non-zero entries of a tensor of counts, which do not change while parameters do.

    ``flat`` and ``last`` are their positions in the whole and along the last axis, ``x`` they
    themselves in float64, ``entry`` their positions in the tables of small counts, and ``large``
    which of them are not to be found there.
    """

    flat: Tensor
    last: Tensor
    x: Tensor
    entry: Tensor
    large: Tensor

    @classmethod
    def of(cls, value: Tensor, at: tuple[Tensor, Tensor] | None = None) -> Self:
        """Find them; ``at`` is where they are, in the whole and along the last axis, if known."""
        every = value.reshape(-1)
        n_last = value.shape[-1] if value.dim() else 1
        if at is None:
            # NaN and (unvalidated) negative counts count as non-zero, to come out as NaN.
            flat = (every != 0).nonzero().squeeze(-1)
            at = flat, flat % max(n_last, 1)
        flat, last = at
        x = every.index_select(0, flat).double()
        count = x.clamp(0, SMALL_COUNT).nan_to_num_()
        large = (count.floor() != x).nonzero().squeeze(-1)  # not whole, if nobody checks
        return cls(flat, last, x, count.long().mul_(n_last).add_(last), large)


def nonzero_of(value: Tensor) -> NonZero:
    """Find the non-zero counts; those of :class:`SparseValues` once, and without a search."""
    if isinstance(value, SparseValues) and value.is_unchanged:
        return value.once(_of_sparse)
    return NonZero.of(value)


def _of_sparse(value: SparseValues) -> NonZero:
    row, column = value.positions()
    return NonZero.of(value, (row * value.shape[1] + column, column))
