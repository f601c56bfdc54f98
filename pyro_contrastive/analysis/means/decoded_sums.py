"""Expression that the model decodes, with and without the salient latent, summed over cells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive._tools.torch_tools import evaluating, numpy_rng
from pyro_contrastive.analysis.decoding import decode_batch
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.runs import draw_posterior, without_salient

__all__ = ["MOST_DECODED", "decoded_sums", "decoded_sums_of_some"]

MOST_DECODED = 1_000
"""Cells of a code that are decoded at most: the mean of more is known to a hundredth."""


def decoded_sums_of_some(
    query: Query, codes: NDArray[np.int64], n_codes: int
) -> NDArray[np.float64]:
    """Estimate :func:`decoded_sums` from some cells of each code, if there are many.

    Parameters
    ----------
    query, codes, n_codes
        As for :func:`decoded_sums`; cells with a code of -1 do not count. The choice is by torch's
        global random state.
    """
    n_cells = np.bincount(codes[codes >= 0], minlength=n_codes)
    if n_cells.max(initial=0) <= MOST_DECODED:
        return decoded_sums(query, codes, n_codes)
    order = numpy_rng().permutation(len(codes))
    by_code = order[np.argsort(codes[order], kind="stable")]
    by_code = by_code[codes[by_code] >= 0]
    rank = np.arange(len(by_code)) - np.repeat(np.cumsum(n_cells) - n_cells, n_cells)
    chosen = np.sort(by_code[rank < MOST_DECODED])
    sums = decoded_sums(query.of(query.cells[chosen]), codes[chosen], n_codes)
    weights = n_cells / np.clip(n_cells, 1, MOST_DECODED)
    return np.asarray(sums * weights[:, None, None])


def decoded_sums(query: Query, codes: NDArray[np.int64], n_codes: int) -> NDArray[np.float64]:
    """Sum decoded expression over the cells of each code, ``[codes, 2, genes]``.

    First with the salient latent, then without it, from the same posterior draws. Memory does not
    grow with the number of cells.

    Parameters
    ----------
    query
        The cells, and how they are decoded: averaged over the draws.
    codes
        From 0, one per cell of the query.
    n_codes
        Number of codes.
    """
    n_samples = query.decoding.n_samples
    total = np.zeros((n_codes, 2, len(query.genes)))
    start = 0
    with evaluating(query.vae):
        for batch, guide in query.with_programs(n_samples):
            posterior = draw_posterior(query.vae, batch, n_samples, guide=guide)
            own = codes[start : start + len(batch)]
            start += len(batch)
            member = (np.arange(n_codes)[:, None] == own).astype(np.float32)  # [codes, cells]
            for k, do in enumerate((None, without_salient(posterior))):
                total[:, k] += member @ decode_batch(query, batch, posterior, do)
    return total
