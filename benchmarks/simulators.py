"""A second simulator of treated and untreated cells, made otherwise than the library's.

Cells of a few types lie anywhere along continuous paths (such as activation, or the cell cycle), on
which many genes rise and fall; their noise is log-normal. The sides may differ in the frequencies
of the types, in where they lie along the paths, and in depth, without any response.
"""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Array = NDArray[np.float64]
MARKERS, ON_PATH = 0.08, 0.25
"""Shares of genes that mark a type, and that change along a path."""


@dataclass(frozen=True)
class PathSettings:
    """Sizes and differences of the simulated populations.

    Parameters
    ----------
    n_cells
        Number of cells of each side.
    n_genes, n_types, n_paths
        Numbers of genes, cell types, and continuous paths that all types share.
    type_shift
        Log ratio of the frequencies of the last and the first type in treated cells.
    path_shift
        Untreated cells lie at Beta(1, 1 + shift) of each path, treated ones at Beta(1 + shift, 1).
    treated_depth, mean_total
        Depth of treated over that of untreated cells, and the latter's typical total count.
    share_affected, responding
        Share of genes that the treatment changes, by .4 to 2 (log2), and of treated cells that
        respond.
    """

    n_cells: int = 600
    n_genes: int = 700
    n_types: int = 6
    n_paths: int = 2
    type_shift: float = 0.0
    path_shift: float = 0.0
    treated_depth: float = 1.0
    mean_total: float = 1500.0
    share_affected: float = 0.15
    responding: float = 1.0


def simulate_paths(given: PathSettings, *, seed: int = 0) -> ad.AnnData:
    """Draw counts; ``var["lfc"]`` is the true log2 fold change of the mean of treated cells."""
    rng = np.random.default_rng(seed)
    n = 2 * given.n_cells
    treated = np.arange(n) >= given.n_cells
    frequency = np.exp(given.type_shift * np.linspace(0, 1, given.n_types))
    cell_type = np.where(
        treated,
        rng.choice(given.n_types, n, p=frequency / frequency.sum()),
        rng.integers(given.n_types, size=n),
    )
    untreated = _expression(given, cell_type, _positions(given, treated, rng), rng)
    scale, lfc = _treat(given, untreated, treated, rng)
    library = given.mean_total * np.exp(rng.normal(0, 0.45, n))
    library[treated] *= given.treated_depth
    noise = rng.uniform(0.2, 0.8, given.n_genes)  # standard deviation of the log, by gene
    factor = np.exp(rng.normal(0, 1, scale.shape) * noise - noise**2 / 2)
    counts = rng.poisson(library[:, None] * scale * factor)
    obs = pd.DataFrame(
        {
            "condition": np.where(treated, "treated", "control"),
            "cell_type": [f"type {t}" for t in cell_type],
        },
        index=np.arange(n).astype(str),
    )
    adata = ad.AnnData(csr_matrix(counts.astype(np.float32)), obs=obs)
    adata.var["lfc"] = lfc
    return adata


def _positions(given: PathSettings, treated: NDArray[np.bool_], rng: np.random.Generator) -> Array:
    """Place of each cell along each path, from 0 to 1, ``[cells, paths]``."""
    shape = (len(treated), given.n_paths)
    late = rng.beta(1 + given.path_shift, 1, shape)
    early = rng.beta(1, 1 + given.path_shift, shape)
    return np.where(treated[:, None], late, early)


def _expression(
    given: PathSettings, cell_type: NDArray[np.int64], place: Array, rng: np.random.Generator
) -> Array:
    """Expression without treatment, ``[cells, genes]``, summing to 1 over genes."""
    shape = (given.n_types, given.n_genes)
    markers = rng.normal(0, 1.2, shape) * (rng.random(shape) < MARKERS)
    shape = (given.n_paths, given.n_genes)
    peak, height = rng.random(shape), rng.normal(0, 1.2, shape) * (rng.random(shape) < ON_PATH)
    paths = (height * np.exp(-(((place[:, :, None] - peak) / 0.35) ** 2))).sum(1)
    log = rng.normal(0, 1.3, given.n_genes) + markers[cell_type] + paths
    scale = np.exp(log)
    return np.asarray(scale / scale.sum(1, keepdims=True))


def _treat(
    given: PathSettings, untreated: Array, treated: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[Array, Array]:
    """Change some genes, leaving their sum, and so all other genes, as they were."""
    affected = rng.permutation(given.n_genes)[: round(given.share_affected * given.n_genes)]
    lfc = np.zeros(given.n_genes)
    if not len(affected):
        return untreated, lfc
    sign = np.where(np.arange(len(affected)) % 2, 1, -1)
    effect = rng.uniform(0.4, 2.0, len(affected)) * sign
    responds = treated & (rng.random(len(treated)) < given.responding)
    scale, before = untreated.copy(), untreated[:, affected]
    after = before * 2.0 ** (responds[:, None] * effect)
    scale[:, affected] = after * before.sum(1, keepdims=True) / after.sum(1, keepdims=True)
    means = [values[treated][:, affected].mean(0) for values in (scale, untreated)]
    lfc[affected] = np.log2(means[0] / means[1])
    return scale, lfc
