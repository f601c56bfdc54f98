"""How close the guide's posterior and the refined one are to the posterior, on held-out cells.

    python benchmarks/refinement.py [--data kang.h5ad:condition:control ...] [--steps 10 20 30]

Each data set (``--data`` with ``path:condition column:background``; the bundled Kang cells are the
first) is fitted once per seed: the preset "separated", the fast schedule, stopped early. Then, for
up to ``--cells`` held-out cells of each population and 400 draws: the share of cells with a Pareto
k below .7, its median, the effective sample size of the importance weights as a share of the draws,
the ELBO and the importance-weighted log p(x) in nats per cell, for the guide and for refinement by
each number of steps; and the processor milliseconds per cell, with one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd
from common import OURS, Configuration, fit_ours, read_counts, show, start
from numpy.typing import NDArray

from pyro_contrastive import ContrastiveVI
from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis.comparison import estimate
from pyro_contrastive.analysis.likelihood import log_weights_of_cells
from pyro_contrastive.data import load_kang

N_DRAWS = 400
TRUSTED_K = 0.7
STOPPED = Configuration(
    OURS["ours, separated"].model,
    OURS["ours, separated"].train | {"train_size": 0.9, "early_stopping": True},
)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="*", default=[], help="path:condition column:background")
    parser.add_argument("--steps", nargs="*", type=int, default=[10, 20, 30])
    parser.add_argument("--cells", type=int, default=100, help="of each population")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def data_sets(given: list[str]) -> Iterator[tuple[str, ad.AnnData, str, str]]:
    """Yield name, counts, condition column and background."""
    yield "Kang, bundled", load_kang(), "condition", "control"
    for text in given:
        path, key, background = text.split(":")
        yield path.rpartition("/")[2].removesuffix(".h5ad"), read_counts(path), key, background


def held_out(model: ContrastiveVI, n_cells: int) -> dict[str, NDArray[np.int64]]:
    """Return some held-out cells of each population."""
    cells = np.random.default_rng(0).permutation(model.validation_indices)
    is_target = model._query(None, None).data.condition[cells] > 0
    return {"background": cells[~is_target][:n_cells], "target": cells[is_target][:n_cells]}


def measure(model: ContrastiveVI, cells: NDArray[np.int64], n_steps: int) -> dict[str, float]:
    """Measure the posterior after this many steps of refinement; 0: that of the guide."""
    refine = n_steps or False
    query = model._query(None, cells, 1024, refine=refine)
    seconds = 0.0
    if refine:
        next(iter(query.with_programs()))  # compiles what has to be
        query = model._query(None, cells, 1024, refine=refine)
        begun = time.process_time()
        for _ in query.with_programs():
            pass
        seconds = time.process_time() - begun
    with seeded(0):
        weights = log_weights_of_cells(query, N_DRAWS)
    found = estimate(weights)
    shares = np.exp(weights - weights.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return {
        "k < .7": float((found.k < TRUSTED_K).mean()),
        "median k": float(np.median(found.k)),
        "effective": float((1 / (shares**2).sum(1)).mean() / N_DRAWS),
        "ELBO": float(weights.mean()),
        "log p": float(found.psis.mean()),
        "ms per cell": 1000 * seconds / len(cells),
    }


def main() -> None:
    """Fit, refine, print."""
    options = arguments()
    start(options)
    for name, adata, key, background in data_sets(options.data):
        rows = []
        for seed in range(options.seeds):
            model, _ = fit_ours(adata, key, background, configuration=STOPPED, seed=seed)
            for population, cells in held_out(model, options.cells).items():
                for n_steps in (0, *options.steps):
                    label = f"refined, {n_steps} steps" if n_steps else "guide"
                    rows.append(
                        {"cells": population, "posterior": label} | measure(model, cells, n_steps)
                    )
        table = pd.DataFrame(rows).groupby(["cells", "posterior"], sort=False).mean()
        show(f"{name}: {adata.n_obs} cells x {adata.n_vars} genes", table, digits=2)


if __name__ == "__main__":
    main()
