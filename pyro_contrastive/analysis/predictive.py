"""Replicate data: what the model would have seen, drawn by running the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from pyro.poutine import Trace

from pyro_contrastive._tools.torch_tools import evaluating, seeded
from pyro_contrastive.analysis.expression import (
    Decoding,
    Donors,
    counterfactual_batch,
    decoded_under,
)
from pyro_contrastive.analysis.runs import chunks, draw_posterior, run_model, shared_sites
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.vae import ContrastiveVAE

Array = NDArray[np.float32]


class Replicates(NamedTuple):
    """Replicate data of some cells.

    Attributes
    ----------
    cells
        Which cells: positions in the data, in the order they were asked for.
    x
        The replicates, ``[n_samples, cells, genes]``, float32.
    """

    cells: NDArray[np.int64]
    x: Array


@dataclass(frozen=True)
class Predicting:
    """What to draw.

    Parameters
    ----------
    decoding
        Genes, number of draws, batch and covariates to decode under; at most one batch.
    from_prior
        Draw the latents from their priors, not from the guide.
    condition, donors
        Condition code to set all cells to (Pyro's ``do``), and whose salient latents stand for it:
        see :func:`~pyro_contrastive.analysis.expression.counterfactual_batch`. Default: each cell's
        own.
    seed
        Seed; default: torch's global state.
    """

    decoding: Decoding = field(default_factory=Decoding)
    from_prior: bool = False
    condition: int | None = None
    donors: Donors | None = None
    seed: int | None = None


def replicates(
    vae: ContrastiveVAE, data: CellData, indices: NDArray[np.int64], predicting: Predicting
) -> Iterator[Replicates]:
    """Draw replicate data, a mini-batch of cells at a time.

    Given the latents they are independent of the data. What no cell has for its own (inverse
    dispersions with a prior) is drawn once, for all mini-batches. Evaluation mode and the seeded
    random state hold only while a mini-batch is drawn: whoever takes the next one finds all as it
    was.

    Parameters
    ----------
    vae, data, indices
        The model, the data and which cells.
    predicting
        What to draw.
    """
    decoding = predicting.decoding
    start, shared = 0, Trace()
    with ExitStack() as at_end:
        batches = chunks(vae, data, indices, decoding.batch_size, decoding.n_samples)
        at_end.callback(batches.close)  # type: ignore[attr-defined]  # a generator
        for number, batch in enumerate(batches):
            with evaluating(vae), seeded(chunk_seed(predicting.seed, number)):
                trace = _replicate(vae, batch, predicting, shared)
                shared = shared_sites(trace)
                drawn = trace.nodes["x"]["value"][..., decoding.genes].float().cpu().numpy()
                del trace
            yield Replicates(indices[start : start + len(batch)], drawn)
            start += len(batch)


def chunk_seed(seed: int | None, number: int) -> int | None:
    """Return a seed for one mini-batch, so that nothing is kept between two of them."""
    if seed is None:
        return None
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]) >> 1


def _replicate(
    vae: ContrastiveVAE, batch: CellBatch, predicting: Predicting, shared: Trace
) -> Trace:
    decoding = predicting.decoding
    n_samples = decoding.n_samples
    # Sites that a trace lacks are drawn from their priors.
    drawn = (
        shared if predicting.from_prior else draw_posterior(vae, batch, n_samples, shared=shared)
    )
    do = None
    if predicting.condition is not None:
        batch, do = counterfactual_batch(
            vae, batch, drawn, predicting.condition, n_samples, predicting.donors
        )
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
