r"""The arithmetic of differential expression: from paired draws of expression to statistics.

After Lopez et al. (Nature Methods 2018) and Boyeau et al. (PNAS 2023), as in scvi-tools. Draws are
arrays ``[pairs, genes]``; row i of one group is compared with row i of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive.observed.matrix import Matrix, row_sums
from pyro_contrastive.observed.source import Observed, as_observed

Draws = NDArray[np.floating[Any]]
Vector = NDArray[np.float64]

SMALLEST_PSEUDOCOUNT = 1e-10
COUNTS_PER_CELL = 1e4
"""Total to which counts are scaled for ``raw_normalized_mean``."""


def log_odds(probability: ArrayLike) -> Vector:
    """Log of a probability over its complement; at most about 18.4 in absolute value."""
    p = np.asarray(probability, dtype=np.float64)
    eps = 1e-8
    return np.log(p + eps) - np.log(1 - p + eps)


def log_fold_change(x: Draws, y: Draws, pseudocount: float) -> Draws:
    """Return ``log2((x + pseudocount) / (y + pseudocount))``."""
    # The logarithm of a ratio takes half the time of two logarithms.
    ratio = x + pseudocount
    ratio /= y + pseudocount
    return np.log2(ratio, out=ratio)


def estimate_pseudocount(
    draws: Sequence[Draws], raw_means: Sequence[Vector], threshold: float
) -> float:
    """Return a pseudocount that shrinks the fold changes of unexpressed genes to 0.

    In each group: the 0.9 quantile, over genes with a raw mean below `threshold`, of the largest
    draw of the gene. The larger of these, divided by the number of genes; at least 1e-10.

    Parameters
    ----------
    draws, raw_means
        Draws of expression and mean counts, of each group.
    threshold
        Mean count below which a gene counts as not expressed in a group.
    """
    found = [0.0]
    for values, means in zip(draws, raw_means, strict=True):
        silent = means < threshold
        if silent.any():
            found.append(float(np.quantile(values[:, silent].max(axis=0), 0.9)))
    return max(SMALLEST_PSEUDOCOUNT, max(found) / draws[0].shape[1])


def estimate_delta(mean_changes: Vector, rng: np.random.Generator) -> float:
    """Fit three normals to the mean change of the genes: down, unchanged, up.

    Returns 0.6 times the mean size of the two outer means, at least 0.1.

    Raises
    ------
    ValueError
        If there are fewer than three genes.
    """
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415 - slow to import, rarely used

    n_normals = 3
    if len(mean_changes) < n_normals:
        msg = (
            f"delta=None fits {n_normals} normals to the genes, but there are {len(mean_changes)}."
        )
        raise ValueError(msg)
    mixture = GaussianMixture(n_normals, random_state=int(rng.integers(2**31)))
    means = mixture.fit(mean_changes[:, None]).means_
    return max(0.1, 0.6 * (abs(means.min()) + abs(means.max())) / 2)


def beyond(change: Draws, delta: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which changes are up (at least delta), and which are down (below -delta)."""
    return change >= delta, change < -delta


def probability_of_change(up: NDArray[np.bool_], down: NDArray[np.bool_], test_mode: str) -> Vector:
    """Probability of a change per gene: of the likelier direction ("three"), or either ("two")."""
    p_up, p_down = up.mean(axis=0), down.mean(axis=0)
    return np.asarray(p_up + p_down if test_mode == "two" else np.maximum(p_up, p_down))


def describe(samples: Draws, levels: Sequence[float] | None = None) -> dict[str, Vector]:
    """Mean, median, (population) standard deviation, extremes, intervals; each per gene."""
    described = {
        "mean": samples.mean(axis=0, dtype=np.float64),
        # Transposed, so that the draws of a gene are adjacent in memory: the median reads them all.
        "median": np.median(np.ascontiguousarray(samples.T), axis=1).astype(np.float64),
        "std": samples.std(axis=0, dtype=np.float64),
        "min": samples.min(axis=0).astype(np.float64),
        "max": samples.max(axis=0).astype(np.float64),
    }
    if levels is None:
        return described
    ordered = np.sort(samples, axis=0)
    for level in levels:
        name = f"confidence_interval_{str(level)[:5]}"
        described[f"{name}_min"], described[f"{name}_max"] = _shortest_interval(ordered, level)
    return described


def _shortest_interval(ordered: Draws, level: float) -> tuple[Vector, Vector]:
    """Return the ends of the shortest interval with a fraction `level` of the (sorted) draws."""
    n_inside = int(np.floor(level * len(ordered)))
    starts = np.argmin(ordered[n_inside:] - ordered[: len(ordered) - n_inside], axis=0)
    genes = np.arange(ordered.shape[1])
    return (
        ordered[starts, genes].astype(np.float64),
        ordered[starts + n_inside, genes].astype(np.float64),
    )


def tag_by_expected_fdr(probability: ArrayLike, target: float) -> NDArray[np.bool_]:
    """Tag the largest set of genes whose posterior expected false discovery rate is low enough.

    Parameters
    ----------
    probability
        Probability that a gene is differentially expressed.
    target
        Largest allowed mean of (1 - probability) over the tagged genes.
    """
    p = np.asarray(probability, dtype=np.float64)
    order = np.argsort(-p, kind="stable")
    expected_fdr = np.cumsum(1 - p[order]) / np.arange(1, len(p) + 1)
    tagged = np.zeros(len(p), dtype=bool)
    tagged[order[: int((expected_fdr <= target).sum())]] = True
    return tagged


def count_statistics(counts: Matrix | Observed, cells: NDArray[np.int64]) -> dict[str, Vector]:
    """Mean count, fraction of cells with a count, and mean count per 10,000, per gene.

    A cell without counts adds 0 to the means.
    """
    source = as_observed(counts)
    found = {
        name: np.zeros(source.shape[1])
        for name in ("raw_mean", "non_zeros_proportion", "raw_normalized_mean")
    }
    for _, rows in source.blocks(cells):
        totals = row_sums(rows)
        scaling = np.divide(COUNTS_PER_CELL, totals, out=np.zeros_like(totals), where=totals > 0)
        each = np.full(rows.shape[0], 1 / len(cells))
        found["raw_mean"] += rows.T @ each
        found["non_zeros_proportion"] += (rows != 0).T @ each
        found["raw_normalized_mean"] += rows.T @ (scaling * each)
    return found
