"""Make the small interferon data set that ships inside the package from the full Kang et al. file.

Run as ``python benchmarks/make_kang_subset.py FULL.h5ad pyro_contrastive/data/kang_ifnb.h5ad``.
Needs scanpy and scikit-misc, which the package itself does not depend on.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

MIT_SOURCES = ("rDeepmaps_ifnb_2800", "seuratTools_ifnb1k")
KEPT_OBS = ("condition", "cell_type", "cell_type_coarse")
RESPONSE_GENES = ("ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "CXCL10")
N_GENES = 2_000
MAX_BYTES = 3_000_000

SOURCE = """\
Peripheral blood mononuclear cells of eight lupus patients, left untreated (control) or treated \
with interferon-beta for 6 hours (stimulated), 10x Genomics 3' counts.
Paper: Kang HM et al., "Multiplexed droplet single-cell RNA-sequencing using natural genetic \
variation", Nature Biotechnology 36, 89-94 (2018), doi:10.1038/nbt.4042. Deposited as GEO GSE96583 \
(batch 2).
Files: the counts come from two MIT-licensed GitHub repositories that redistribute part of the \
study: chthub/rDeepmaps (data/ifnb_2800.rda) and hjames1/seuratTools (data/ifnb1k.rda). \
{per_source}. Each cell is counted once.
Cell selection: every cell of those two files that has a published annotation and at least one \
count in the selected genes; {n_cells:,} cells.
Gene selection: starting from {n_full:,} genes (those also listed in the pbmc_stim subset of \
immunogenomics/harmony and seen in at least 3 cells), the {n_genes:,} most variable by scanpy \
{scanpy} highly_variable_genes, flavour seurat_v3, on the raw counts, which are stored here.
Labels: cell_type is the seurat_annotations column that SeuratData distributes with its ifnb data \
set, joined on barcode and condition through sc1meta.rds of royfrancis/ifnb (a repository without \
a licence file); cell_type_coarse merges its closely related types.
"""


def variable_genes(cells: ad.AnnData, n_top: int) -> np.ndarray:
    """Mask of the most variable genes of raw counts, ``[genes]`` (scanpy's seurat_v3 flavour).

    The default flavour, on log-normalised counts, would leave MX1 out: interferon raises it in so
    many cells that it looks no more variable than other genes with the same mean.

    Raises
    ------
    ValueError
        If a known response gene, which readers of the demo will look up, is not selected.
    """
    ranked = sc.pp.highly_variable_genes(
        cells, n_top_genes=n_top, flavor="seurat_v3", inplace=False
    )
    mask = ranked["highly_variable"].to_numpy()
    missing = sorted(set(RESPONSE_GENES) - set(cells.var_names[mask]))
    if missing:
        raise ValueError(f"the selection leaves out the response genes {missing}")
    return mask


def make_subset(full: ad.AnnData) -> ad.AnnData:
    """Select cells and genes, drop the other columns and record the sources.

    Parameters
    ----------
    full
        The full file: raw counts, ``obs["file_source"]`` naming the file of every cell.

    Returns
    -------
    anndata.AnnData
        Counts as 16-bit integers in CSR form, three ``obs`` columns, ``uns["source"]``.
    """
    cells = full[full.obs["file_source"].isin(MIT_SOURCES)].copy()
    cells = cells[:, variable_genes(cells, N_GENES)].copy()
    cells = cells[np.asarray(cells.X.sum(axis=1)).ravel() > 0].copy()
    counts = sparse.csr_matrix(cells.X)
    counts.sort_indices()
    if counts.data.max() > np.iinfo(np.uint16).max or (counts.data % 1).any():
        raise ValueError("counts must be integers below 65,536 to be stored in 16 bits")
    per_source = cells.obs["file_source"].astype(str).value_counts()
    obs = pd.DataFrame(
        {key: pd.Categorical(cells.obs[key].astype(str)) for key in KEPT_OBS},
        index=cells.obs_names.astype(str),
    )
    source = SOURCE.format(
        per_source="; ".join(f"{name}: {per_source[name]:,} cells" for name in MIT_SOURCES),
        n_cells=cells.n_obs,
        n_full=full.n_vars,
        n_genes=cells.n_vars,
        scanpy=version("scanpy"),
    )
    var = pd.DataFrame(index=cells.var_names.astype(str))
    return ad.AnnData(counts.astype(np.uint16), obs=obs, var=var, uns={"source": source})


def main() -> None:
    """Read the two paths from the command line, write the subset, refuse a file that is too big."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("full", type=Path, help="the full Kang et al. h5ad")
    parser.add_argument("output", type=Path, help="where to write the subset")
    arguments = parser.parse_args()
    subset = make_subset(ad.read_h5ad(arguments.full))
    subset.write_h5ad(arguments.output, compression="gzip", compression_opts=9)
    size = arguments.output.stat().st_size
    if size > MAX_BYTES:
        arguments.output.unlink()
        raise SystemExit(f"{size:,} bytes is over the {MAX_BYTES:,} allowed in the package")
    print(f"{subset.n_obs:,} cells x {subset.n_vars:,} genes, {size:,} bytes")
    print(pd.crosstab(subset.obs["cell_type_coarse"], subset.obs["condition"]))


if __name__ == "__main__":
    main()
