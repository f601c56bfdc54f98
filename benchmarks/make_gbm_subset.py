"""Make the small glioblastoma data set of notebook 07 from the file of Zhao et al. 2021.

Run as ``python benchmarks/make_gbm_subset.py FULL.h5ad notebooks/data/gbm_panobinostat.h5ad``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
from scipy import sparse

PER_SAMPLE, SEED = 300, 0
KEPT_OBS = {"condition": "condition", "patient_id": "patient"}
SOURCE = """\
Acute slice cultures of glioblastoma from five patients, treated with panobinostat or with vehicle \
(DMSO). Raw counts of 300 genes.
Paper: Zhao W et al., "Deconvolution of cell type-specific drug responses in human tumor tissue \
with single-cell RNA-seq", Genome Medicine 13, 82 (2021), doi:10.1186/s13073-021-00894-y. \
Deposited as GEO GSE148842.
File: data/glioblastoma_example_data.rda of the R package lemur (const-ae/lemur, commit 0e62bc1), \
MIT License, Copyright (c) 2023 lemur authors; its licence is in README.md beside this file.
Cell selection: {per_sample} cells of each patient and condition, drawn at random (NumPy, seed \
{seed}).
"""


def main() -> None:
    """Draw the cells and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("full", type=Path)
    parser.add_argument("to", type=Path)
    options = parser.parse_args()
    full = ad.read_h5ad(options.full)
    rng = np.random.default_rng(SEED)
    samples = full.obs.groupby(["patient_id", "condition"], observed=True).indices
    cells = np.sort(np.concatenate([rng.choice(c, PER_SAMPLE, False) for c in samples.values()]))
    some = full[cells]
    obs = some.obs[list(KEPT_OBS)].rename(columns=KEPT_OBS)
    obs = obs.apply(lambda column: column.cat.remove_unused_categories())
    # 16-bit integers keep the file small.
    x = sparse.csr_matrix(some.X).astype(np.uint16)
    assert (x != some.X).nnz == 0
    source = SOURCE.format(per_sample=PER_SAMPLE, seed=SEED)
    var = some.var[[]]
    made = ad.AnnData(x, obs=obs, var=var, uns={"source": source})
    made.write_h5ad(options.to, compression="gzip", compression_opts=9)
    print(made, f"\n{options.to.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
