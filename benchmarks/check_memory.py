"""Peak memory and time of a posterior predictive check, on simulated sparse counts.

    python benchmarks/check_memory.py --cells 100000 --genes 2000 --samples 20

The model is not trained, because memory and time do not depend on it.
"""

from __future__ import annotations

import argparse
import resource
import time

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyro_contrastive import ContrastiveVI

CELLS_AT_A_TIME = 2000


def simulated(n_cells: int, n_genes: int) -> ad.AnnData:
    """Simulate Poisson counts, about a tenth above 0, for two conditions and eight cell types."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.3, 0.4, n_genes)
    parts = []
    for start in range(0, n_cells, CELLS_AT_A_TIME):
        n = min(CELLS_AT_A_TIME, n_cells - start)
        counts = rng.poisson(rates * rng.lognormal(0, 0.3, (n, 1))).astype(np.float32)
        parts.append(sp.csr_matrix(counts))
    obs = pd.DataFrame(
        {
            "condition": rng.choice(["control", "treated"], n_cells),
            "lane": rng.choice(["1", "2"], n_cells),
            "cell_type": rng.choice(list("abcdefgh"), n_cells),
        },
        index=[f"cell {i}" for i in range(n_cells)],
    )
    return ad.AnnData(sp.vstack(parts, format="csr"), obs=obs)


def gigabytes() -> float:
    """Peak resident memory so far (Linux gives kilobytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Run the check and print its memory and time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=20)
    given = parser.parse_args()
    adata = simulated(given.cells, given.genes)
    density = adata.X.nnz / (given.cells * given.genes)
    ContrastiveVI.setup_anndata(
        adata,
        condition_key="condition",
        background="control",
        batch_key="lane",
        labels_key="cell_type",
    )
    model = ContrastiveVI(adata)
    print(f"{given.cells} cells, {given.genes} genes, {density:.1%} non-zero", flush=True)
    print(f"peak before the check {gigabytes():.2f} GB", flush=True)
    start = time.perf_counter()
    check = model.posterior_predictive_check(n_samples=given.samples, interval=0.9, seed=0)
    print(f"{given.samples} replicates: {time.perf_counter() - start:.0f} s")
    print(
        f"peak {gigabytes():.2f} GB; {len(check.genes)} rows of genes, {len(check.cells)} of cells"
    )


if __name__ == "__main__":
    main()
