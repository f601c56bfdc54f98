"""Make the small interferon data set that ships inside the package from the full Kang et al. file.

Run as ``python benchmarks/make_kang_subset.py FULL.h5ad pyro_contrastive/data/kang_ifnb.h5ad``.
Needs scanpy and scikit-misc, which the package itself does not depend on.

The cells are labelled here, by :func:`label_cells`, from the counts and from marker genes. The
published annotation is not shipped, because the file that has it for all of these cells comes
without a licence. If the full file contains that annotation, ``uns["source"]`` says how often both
agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

MIT_SOURCES = ("rDeepmaps_ifnb_2800", "seuratTools_ifnb1k")
RESPONSE_GENES = ("ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "CXCL10")
N_GENES = 2_000
MAX_BYTES = 3_000_000

# Genes by which immunologists tell these cells apart, among the genes that are kept.
MARKERS = {
    "CD14 Mono": ("CD14", "S100A8", "S100A9", "CCL2", "LYZ", "IL8"),
    "CD16 Mono": ("FCGR3A", "MS4A7", "VMO1"),
    "DC": ("FCER1A", "CLEC10A", "CCL22", "HLA-DQA1", "CST3", "LYZ"),
    "pDC": ("TSPAN13", "IGJ", "IL3RA", "SERPINF1", "GZMB"),
    "B": ("CD79A", "MS4A1", "CD79B"),
    "B Activated": ("MIR155HG", "NME1", "MYC", "REL", "CD83"),
    "CD4 Naive T": ("CCR7", "SELL", "LEF1", "CD3D", "LTB"),
    "CD4 Memory T": ("CREM", "IL7R", "ANXA1", "CD2", "CD3D", "GPR183"),
    "CD8 T": ("CD8A", "CD8B", "GZMK", "CCL5", "GZMH", "CD3D", "NKG7", "GZMA"),
    "T activated": (
        *("HSPH1", "DNAJB1", "CACYBP", "HSPD1", "HSPE1", "CD69", "BIRC3", "TSC22D3", "TRAT1"),
    ),
    "NK": ("GNLY", "NKG7", "KLRD1", "PRF1", "CTSW", "GZMB", "XCL1", "XCL2", "FGFBP2"),
    "Mk": ("PPBP", "PF4", "GNG11", "TUBB1", "SDPR"),
    "Eryth": ("HBA1", "HBA2", "HBB"),
}
COARSE = {
    **{"CD14 Mono": "Mono", "CD16 Mono": "Mono", "pDC": "DC", "B Activated": "B"},
    **{"CD4 Naive T": "CD4 T", "CD4 Memory T": "CD4 T"},
}
MARKER_FOLD = 4.0  # a marker starts this much above the mean in its types, and below it in others
MARKER_COUNTS = 1_000.0  # what is known of markers weighs as much as this many counts
BORROWED_COUNTS = 1_000.0  # and the profile of both conditions as many in that of each
MAX_ROUNDS = 100

SOURCE = """\
Peripheral blood mononuclear cells of eight lupus patients, left untreated (control) or treated \
with interferon-beta for 6 hours (stimulated), 10x Genomics 3' counts.
Paper: Kang HM et al., "Multiplexed droplet single-cell RNA-sequencing using natural genetic \
variation", Nature Biotechnology 36, 89-94 (2018), doi:10.1038/nbt.4042. Deposited as GEO GSE96583 \
(batch 2).
Files: the counts come from two MIT-licensed GitHub repositories that redistribute part of the \
study: chthub/rDeepmaps (data/ifnb_2800.rda) and hjames1/seuratTools (data/ifnb1k.rda). \
{per_source}. Each cell is counted once.
Notices: both repositories are under the MIT licence; their notices are in \
pyro_contrastive/data/kang_ifnb_NOTICE.txt.
Cell selection: every cell of those two files that has a published annotation \
(seurat_annotations in the ifnb data set of SeuratData) and at least one count in the selected \
genes; {n_cells:,} cells.
Gene selection: starting from {n_full:,} genes (those also listed in the pbmc_stim subset of \
immunogenomics/harmony and seen in at least 3 cells), the {n_genes:,} most variable by scanpy \
{scanpy} highly_variable_genes, flavour seurat_v3, on the raw counts, which are stored here.
Labels: cell_type and cell_type_coarse were made for this package from these counts, by a mixture \
of multinomial distributions that starts at marker genes, separately for both conditions \
(benchmarks/make_kang_subset.py). They are not the published annotation; {agreement}.
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
    import scanpy as sc

    ranked = sc.pp.highly_variable_genes(
        cells, n_top_genes=n_top, flavor="seurat_v3", inplace=False
    )
    mask = ranked["highly_variable"].to_numpy()
    missing = sorted(set(RESPONSE_GENES) - set(cells.var_names[mask]))
    if missing:
        raise ValueError(f"the selection leaves out the response genes {missing}")
    return mask


def marker_table(genes: Sequence[str]) -> np.ndarray:
    """Return which genes are markers of which type, as zeros and ones ``[types, genes]``."""
    return np.array([np.isin(genes, markers) for markers in MARKERS.values()], dtype=np.float64)


def marker_profiles(markers: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Expect markers above the mean in their types and below it in others, ``[types, genes]``."""
    fold = np.where(markers.any(axis=0), MARKER_FOLD ** (2 * markers - 1), 1.0)
    profiles = fold * mean
    return profiles / profiles.sum(axis=1, keepdims=True)


def estimate_profiles(
    share: np.ndarray, counts: sparse.csr_matrix, condition: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log profile of each type in each condition, and log frequency of the types.

    ``share`` is the probability of each type for each cell. The profile of a type in one condition
    borrows from that of both, and that one from the markers, so that small types have profiles too.
    """
    both = share.T @ counts + MARKER_COUNTS * known
    both /= both.sum(axis=1, keepdims=True)
    profiles, frequency = [], []
    for side in np.unique(condition):
        cells = condition == side
        own = share[cells].T @ counts[cells] + BORROWED_COUNTS * both
        profiles.append(own / own.sum(axis=1, keepdims=True))
        frequency.append(share[cells].mean(axis=0) + 1 / len(condition))
    return np.log(profiles), np.log(frequency)


def label_cells(
    counts: sparse.csr_matrix, condition: np.ndarray, genes: Sequence[str]
) -> np.ndarray:
    """Label each cell with one of the 13 types of :data:`MARKERS`, from its raw counts.

    The counts of a cell are taken as multinomial, given its type and condition. The profiles of the
    types start at the markers and are then estimated from all genes by expectation maximisation.
    Both conditions have profiles of their own, because interferon changes every type.

    Parameters
    ----------
    counts
        Raw counts ``[cells, genes]``.
    condition
        Condition of each cell.
    genes
        Names of the genes.

    Returns
    -------
    numpy.ndarray
        Name of the type of each cell. No random numbers are drawn.
    """
    counts = sparse.csr_matrix(counts, dtype=np.float64)
    _, side = np.unique(condition, return_inverse=True)
    mean = np.asarray(counts.sum(axis=0)).ravel() + 1e-3
    markers = marker_table(genes)
    known = marker_profiles(markers, mean)
    # In the first round, each count of a marker is a vote for the types that it marks.
    score = 2 * np.log(MARKER_FOLD) * (counts @ markers.T)
    label = score.argmax(axis=1)
    for _ in range(MAX_ROUNDS):
        share = np.exp(score - score.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        profiles, frequency = estimate_profiles(share, counts, side, known)
        score = np.empty_like(share)
        for code in np.unique(side):
            score[side == code] = counts[side == code] @ profiles[code].T + frequency[code]
        before, label = label, score.argmax(axis=1)
        if (label == before).all():
            return np.array(list(MARKERS))[label]
    raise RuntimeError(f"the labels still change after {MAX_ROUNDS} rounds")


def labels_of(cells: ad.AnnData) -> pd.DataFrame:
    """Columns of ``obs`` that are shipped: condition, type, coarse type."""
    condition = cells.obs["condition"].astype(str).to_numpy()
    types = label_cells(cells.X, condition, list(cells.var_names))
    coarse = [COARSE.get(name, name) for name in types]
    columns = {"condition": condition, "cell_type": types, "cell_type_coarse": coarse}
    return pd.DataFrame(
        {name: pd.Categorical(values) for name, values in columns.items()},
        index=cells.obs_names.astype(str),
    )


def agreement_with_published(obs: pd.DataFrame, published: pd.DataFrame) -> str:
    """Say how often the labels agree with the published annotation, if the full file has it."""
    if not {"cell_type", "cell_type_coarse"} <= set(published):
        return "agreement with that was not measured"
    fine, coarse = (
        (obs[key].astype(str).to_numpy() == published[key].astype(str).to_numpy()).mean()
        for key in ("cell_type", "cell_type_coarse")
    )
    return f"both agree for {fine:.1%} of the cells, and for {coarse:.1%} in the coarse types"


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
    obs = labels_of(cells)
    source = SOURCE.format(
        per_source="; ".join(f"{name}: {per_source[name]:,} cells" for name in MIT_SOURCES),
        n_cells=cells.n_obs,
        n_full=full.n_vars,
        n_genes=cells.n_vars,
        scanpy=version("scanpy"),
        agreement=agreement_with_published(obs, cells.obs),
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
