"""The small real data set that comes with the package."""

from __future__ import annotations

from importlib.resources import as_file, files

import anndata as ad
import numpy as np

__all__ = ["load_kang"]


def load_kang() -> ad.AnnData:
    """Blood cells with and without interferon-beta: 3,474 cells, 2,000 genes, 1 MB.

    Peripheral blood mononuclear cells of eight lupus patients, half of them untreated and half
    treated with interferon-beta for six hours. Every cell type occurs in both conditions and nearly
    all of them respond to interferon, so that both latents have something to find: cell type
    belongs in the background latent, the interferon response in the salient one.

    Returns
    -------
    anndata.AnnData
        A fresh copy on every call, with

        * ``X`` -- raw integer counts, CSR ``float32`` [3474, 2000];
        * ``obs["condition"]`` -- ``"control"`` (1,621 cells) or ``"stimulated"`` (1,853 cells);
        * ``obs["cell_type"]`` -- 13 types, assigned for this package from the counts of marker
          genes; they agree with the published annotation for 87 % of the cells;
        * ``obs["cell_type_coarse"]`` -- the same with close relatives merged, 9 types, which agree
          for 93 %;
        * ``uns["source"]`` -- where cells, genes and labels come from, in full.

    Notes
    -----
    A subset of Kang et al. (2018), *Nature Biotechnology* 36, 89-94, doi:10.1038/nbt.4042 (GEO
    GSE96583), as redistributed by two MIT-licensed repositories, whose notices are beside the file.
    The genes are the most variable ones. ``benchmarks/make_kang_subset.py`` makes the file and
    labels the cells: a mixture of multinomial distributions, one per type and condition, is fitted
    to all counts, starting at genes that are known to mark the types.

    Examples
    --------
    >>> cells = load_kang()
    >>> cells.shape
    (3474, 2000)
    """
    with as_file(files("pyro_contrastive") / "data" / "kang_ifnb.h5ad") as path:
        cells = ad.read_h5ad(path)
    # The file holds 16-bit integers to be small; the models compute in float32.
    cells.X = cells.X.astype(np.float32)
    return cells
