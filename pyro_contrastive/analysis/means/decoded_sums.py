"""Expression that the model decodes, with and without the salient latent, summed over cells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.analysis.decoding import decode_batch
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.runs import draw_posterior, without_salient

__all__ = ["decoded_sums"]


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
