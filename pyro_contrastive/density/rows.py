"""The compiled form of the decoded density: loading it, and calling it in several threads."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_contrastive._tools.operators import define
from pyro_contrastive.density.heads import smallest_scale

logger = logging.getLogger(__name__)
BLOCK = 16
"""Number of cells that a thread takes at a time."""


class Slopes(NamedTuple):
    """Log-probability of each cell, ``[cells]``, and its derivatives.

    By the logits of the scale, by the logits of a structural zero and by the inverse dispersion of
    each entry, all ``[cells, genes]``; by the logarithm of the library size, ``[cells, 1]``.
    """

    log_prob: Tensor
    by_scale: Tensor
    by_dropout: Tensor | None
    by_inverse_dispersion: Tensor
    by_log_library: Tensor


@cache
def kernel() -> ModuleType | None:
    """Import and compile the code; return ``None`` (and log it once) where that is not possible.

    numba takes a second to import, and a few to compile the code for the first time; it keeps the
    result next to the source or in the user's cache folder. Only errors of numba mean that there is
    no compiled code. Other errors are bugs of this library and are raised.
    """
    try:
        errors = import_module("numba").core.errors
    except Exception as error:  # numba is missing, or does not fit the other packages
        _log_lack(error)
        return None
    try:
        from pyro_contrastive.density import kernel as compiled  # noqa: PLC0415  # needs numba, slow to import

        compiled.compile_all()
    except (errors.NumbaError, RuntimeError, OSError) as error:  # RuntimeError: no cache folder
        _log_lack(error)
        return None
    return compiled


def _log_lack(error: Exception) -> None:
    logger.info("Training without compiled code, which is slower: %s.", error)


def by_rows(
    value: Tensor, scale: Tensor, library: Tensor, t: Tensor, logits: Tensor | None
) -> Slopes:
    """Evaluate cell by cell, in compiled code. Overwrites `scale` and `logits`.

    Uses as many threads as torch does (``torch.set_num_threads``), the calling one included.
    """
    scale = scale.contiguous()
    dropout = None if logits is None else logits.contiguous()
    log_prob, by_t, total = torch.ops.pyro_contrastive.count_rows(value, scale, dropout, library, t)
    return Slopes(log_prob, scale, dropout, by_t, total)


def _count_rows(
    value: Tensor, scale: Tensor, dropout: Tensor | None, library: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    compiled: Any = kernel()
    n_cells = value.shape[0]
    logits = scale.new_empty((n_cells, 0)) if dropout is None else dropout
    log_prob, total, by_t = (
        scale.new_empty(n_cells),
        scale.new_empty(n_cells),
        value.new_empty(value.shape),
    )
    per_gene = t.detach().contiguous().numpy()
    table, table_slope = compiled.tables(per_gene)
    floor = np.float32(smallest_scale(scale.dtype))
    arrays = [a.detach().contiguous().numpy() for a in (value, scale, logits, library.reshape(-1))]

    def evaluate(block: slice) -> None:
        counts, rho, p, size = (a[block] for a in arrays)
        filled = (by_t[block].numpy(), log_prob[block].numpy(), total[block].numpy())
        compiled.count_rows(counts, rho, p, size, per_gene, table, table_slope, floor, *filled)

    # Small blocks, handed out as threads become free: torch's own threads wait in busy loops, which
    # may delay a thread of this pool.
    blocks = iter([slice(i, i + BLOCK) for i in range(0, n_cells, BLOCK)])

    def work() -> None:
        for block in blocks:
            evaluate(block)

    n_others = min(torch.get_num_threads(), -(-n_cells // BLOCK)) - 1
    others = [_threads(n_others).submit(work) for _ in range(n_others)]
    work()
    for other in others:
        other.result()
    return log_prob, by_t, total.unsqueeze(-1)


# A torch operator, since a recorded step replays operators.
define(
    "count_rows(Tensor value, Tensor(a!) scale, Tensor(b!)? dropout, Tensor library, Tensor t)"
    " -> (Tensor, Tensor, Tensor)",
    _count_rows,
)


@cache
def _threads(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="rows")


# A forked process inherits the pool without its threads, and would wait for them forever.
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_threads.cache_clear)
