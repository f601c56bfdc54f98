"""Small tables of plain counts for the report, made without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from pyro_contrastive.data.counts import counts_of, not_counts
from pyro_contrastive.observed.source import Observed, as_observed

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
    counts = as_observed(counts_of(adata, layer))  # [cells, genes]
    are_counts = not any(not_counts(rows).any() for _, rows in counts.blocks())
    background, target = (
        _Sums.of(counts, np.flatnonzero(side), are_counts=are_counts)
        for side in (~is_target, is_target)
    )
    if genes is None:
        error = np.sqrt(target.squared_error + background.squared_error)  # [genes]
        difference = target.mean_log - background.mean_log
        difference = np.divide(difference, error, out=np.zeros_like(error), where=error > 0)
        strongest = np.argsort(-np.abs(difference), kind="stable")[:n_top]
    else:
        strongest = adata.var_names.get_indexer(list(genes))
        if (strongest < 0).any():
            absent = [gene for gene, at in zip(genes, strongest, strict=True) if at < 0]
            raise ValueError(f"not in the data: {', '.join(absent)}")
    means = background.mean[strongest], target.mean[strongest]
    with np.errstate(divide="ignore", invalid="ignore"):
        compared = {"ratio": means[1] / means[0]} if are_counts else {}
    compared = compared or {"difference": means[1] - means[0]}
    what = "count" if are_counts else "value"
    return pd.DataFrame(
        {
            f"mean {what}, background": means[0],
            f"mean {what}, target": means[1],
            **compared,
            "% of background cells": 100 * background.above_0[strongest],
            "% of target cells": 100 * target.above_0[strongest],
        },
        index=pd.Index(adata.var_names[strongest], name="gene"),
    )


def _logs(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Logarithm of 1 + counts per 10,000."""
    depth = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    scaled = sparse.csr_matrix(sparse.diags(_SCALE / np.maximum(depth, 1.0)) @ counts)
    scaled.data = np.log1p(scaled.data)
    return scaled


@dataclass(frozen=True)
class _Sums:
    """What is reported of a group of cells, ``[genes]``, summed some cells at a time.

    Mean; share of cells above 0; mean of the logarithms (or of values that are not counts), and
    the squared standard error of that mean.
    """

    mean: NDArray[np.float64]
    above_0: NDArray[np.float64]
    mean_log: NDArray[np.float64]
    squared_error: NDArray[np.float64]

    @classmethod
    def of(cls, counts: Observed, cells: NDArray[np.int64], *, are_counts: bool) -> Self:
        sums = np.zeros((4, counts.shape[1]))
        for _, some in counts.blocks(cells):
            rows = sparse.csr_matrix(some)
            values = _logs(rows) if are_counts else rows.astype(np.float64)
            for at, each in enumerate((rows, rows > 0, values, values.multiply(values))):
                sums[at] += np.asarray(each.sum(axis=0, dtype=np.float64)).ravel()
        mean, above_0, mean_log, mean_square = sums / len(cells)
        variance = np.maximum(mean_square - mean_log**2, 0.0)
        return cls(mean, above_0, mean_log, variance / len(cells))
