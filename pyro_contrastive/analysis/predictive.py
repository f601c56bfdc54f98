"""Replicate data, drawn by running the Pyro program without its observations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from pyro.poutine import Trace

from pyro_contrastive._tools.torch_tools import evaluating, seeded
from pyro_contrastive.analysis.counterfactuals import Intervention, counterfactual_batch
from pyro_contrastive.analysis.decoding import decoded_under
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.runs import draw_posterior, run_model, shared_sites
from pyro_contrastive.cells import CellBatch, X

Array = NDArray[np.float32]


class Replicates(NamedTuple):
    """Replicate data of some cells.

    Attributes
    ----------
    cells
        Positions of the cells in the data, in the order they were asked for.
    x
        The replicates, ``[n_samples, cells, genes]``, float32.
    """

    cells: NDArray[np.int64]
    x: Array


@dataclass(frozen=True)
class Predicting:
    """What replicates are drawn from.

    Parameters
    ----------
    from_prior
        Draw the latents from their priors, not from the guide.
    intervention
        Condition to set all cells to. Default: each cell keeps its own.
    seed
        Seed. Default: torch's global state.
    """

    from_prior: bool = False
    intervention: Intervention | None = None
    seed: int | None = None


def replicates(query: Query, predicting: Predicting) -> Iterator[Replicates]:
    """Draw replicate data, a mini-batch of cells at a time.

    Given the latents they are independent of the data. Parameters that cells share (inverse
    dispersions with a prior) are drawn once, for all mini-batches. Evaluation mode and the seeded
    random state hold only while a mini-batch is drawn, so that code between two mini-batches finds
    the model and the random state as they were.

    Parameters
    ----------
    query
        The cells, the genes, the number of draws, and the covariates and at most one batch to
        decode under.
    predicting
        Source of the replicates.
    """
    vae, decoding = query.vae, query.decoding
    start, shared = 0, Trace()
    with ExitStack() as at_end:
        if predicting.from_prior:
            query = replace(query, refined=None)
        batches = query.with_programs(decoding.n_samples)
        at_end.callback(batches.close)  # type: ignore[attr-defined]  # a generator
        for number, (batch, guide) in enumerate(batches):
            with evaluating(vae), seeded(minibatch_seed(predicting.seed, number)):
                trace = _replicate(query, batch, guide, predicting, shared)
                shared = shared_sites(trace)
                drawn = trace.nodes[X]["value"][..., decoding.genes].float().cpu().numpy()
                del trace
            yield Replicates(query.cells[start : start + len(batch)], drawn)
            start += len(batch)


def minibatch_seed(seed: int | None, number: int) -> int | None:
    """Return a seed for one mini-batch, so that no random state is kept between two of them."""
    if seed is None:
        return None
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]) >> 1


def _replicate(
    query: Query, batch: CellBatch, guide: Any, predicting: Predicting, shared: Trace
) -> Trace:
    vae, decoding = query.vae, query.decoding
    n_samples = decoding.n_samples
    # The model draws sites that a trace lacks from their priors.
    drawn = shared
    if not predicting.from_prior:
        drawn = draw_posterior(vae, batch, n_samples, guide=guide, shared=shared)
    do = None
    if predicting.intervention is not None:
        batch, do = counterfactual_batch(vae, batch, drawn, predicting.intervention, n_samples)
    batch = decoded_under(batch, decoding, decoding.batches[0] if decoding.batches else None)
    return run_model(vae, batch, drawn, n_samples, do, replicate=True)


def collect_dense(parts: Iterator[Replicates], n_samples: int, n_cells: int, n_genes: int) -> Array:
    """Join mini-batches: ``[n_samples, cells, genes]``."""
    joined = np.empty((n_samples, n_cells, n_genes), dtype=np.float32)
    start = 0
    for part in parts:
        stop = start + len(part.cells)
        joined[:, start:stop] = part.x
        start = stop
    return joined


def collect_sparse(
    parts: Iterator[Replicates], n_samples: int, n_genes: int
) -> list[sp.csr_matrix]:
    """Join mini-batches: a CSR matrix ``[cells, genes]`` for each draw."""
    rows: list[list[sp.csr_matrix]] = [[] for _ in range(n_samples)]
    for part in parts:
        for draws, x in zip(rows, part.x, strict=True):
            draws.append(sp.csr_matrix(x))
    empty = sp.csr_matrix((0, n_genes), dtype=np.float32)
    return [sp.vstack([empty, *draws], format="csr", dtype=np.float32) for draws in rows]
