"""Small tables of plain counts for the report, made without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from pyro_contrastive.data.counts import not_counts, read_counts

__all__ = ["cell_counts", "response_table"]

_SCALE = 10_000.0


def cell_counts(
    condition: pd.Series, labels: pd.Series | None, background_category: str
) -> pd.DataFrame:
    """Count cells by label and condition.

    Parameters
    ----------
    condition
        Condition of every cell [cells].
    labels
        Label of every cell [cells], or None for a single row called "all cells".
    background_category
        The condition whose column comes first.

    Returns
    -------
    pandas.DataFrame
        One row per label, largest first; one column per condition.
    """
    rows = pd.Series("all cells", index=condition.index) if labels is None else labels.astype(str)
    table = pd.crosstab(rows, condition.astype(str))
    table.index.name = "cells" if labels is None else str(labels.name)
    table.columns.name = None
    targets = [name for name in table.columns if name != background_category]
    largest_first = table.sum(axis=1).sort_values(ascending=False, kind="stable").index
    return table.loc[largest_first, [background_category, *targets]]


def response_table(
    adata: ad.AnnData,
    is_target: NDArray[np.bool_],
    *,
    genes: Sequence[str] | None = None,
    n_top: int = 8,
    layer: str | None = None,
) -> pd.DataFrame:
    """Compare the counts of single genes between background and target cells.

    Parameters
    ----------
    adata
        Raw counts [cells, genes]; or log-normalised or other values, which are compared without
        scaling.
    is_target
        Whether a cell is a target cell [cells].
    genes
        Genes to list. Default: the ones whose ``log1p`` counts per 10,000 (or values, if they are
        not counts) differ most between the two groups, as a difference of means over its standard
        error.
    n_top
        How many genes to list when `genes` is None. Default 8.
    layer
        Layer that holds the counts. Default: ``X``.

    Returns
    -------
    pandas.DataFrame
        One row per gene: mean count in either group, their ratio (infinite for a gene not seen in
        the background), and the percentage of cells with at least one count in either group. For
        values that are not counts: means, their difference, and the percentages above 0.

    Raises
    ------
    ValueError
        If a gene is not in the data.
    """
    # Read as by the model: SciPy supports neither half precision nor foreign byte orders.
    counts = sparse.csr_matrix(read_counts(adata, layer))  # [cells, genes]
    are_counts = not not_counts(counts).any()
    if genes is None:
        difference = _difference(_logs(counts) if are_counts else counts, is_target)
        strongest = np.argsort(-np.abs(difference), kind="stable")[:n_top]
    else:
        strongest = adata.var_names.get_indexer(list(genes))
        if (strongest < 0).any():
            absent = [gene for gene, at in zip(genes, strongest, strict=True) if at < 0]
            raise ValueError(f"not in the data: {', '.join(absent)}")
    chosen = counts[:, strongest].toarray()  # [cells, genes listed]
    background, target = chosen[~is_target], chosen[is_target]
    means = background.mean(axis=0), target.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        compared = {"ratio": means[1] / means[0]} if are_counts else {}
    compared = compared or {"difference": means[1] - means[0]}
    what = "count" if are_counts else "value"
    return pd.DataFrame(
        {
            f"mean {what}, background": means[0],
            f"mean {what}, target": means[1],
            **compared,
            "% of background cells": 100 * (background > 0).mean(axis=0),
            "% of target cells": 100 * (target > 0).mean(axis=0),
        },
        index=pd.Index(adata.var_names[strongest], name="gene"),
    )


def _logs(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Logarithm of 1 + counts per 10,000."""
    depth = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    scaled = sparse.csr_matrix(sparse.diags(_SCALE / np.maximum(depth, 1.0)) @ counts)
    scaled.data = np.log1p(scaled.data)
    return scaled


def _difference(values: sparse.csr_matrix, is_target: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Difference of means over its standard error, by gene; 0 for a constant gene."""
    mean_target, error_target = _moments(values[is_target])
    mean_background, error_background = _moments(values[~is_target])
    error = np.sqrt(error_target + error_background)  # [genes]
    difference = mean_target - mean_background
    return np.divide(difference, error, out=np.zeros_like(error), where=error > 0)


def _moments(values: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean by gene, and the squared standard error of that mean."""
    mean = _column_means(values)
    variance = np.maximum(_column_means(values.multiply(values)) - mean**2, 0.0)
    return mean, variance / values.shape[0]


def _column_means(values: Any) -> NDArray[np.float64]:
    means: ArrayLike = values.mean(axis=0)
    return np.asarray(means, dtype=np.float64).ravel()
