"""Statistics of a matrix of counts, per gene or per cell, from sums filled part by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PER_COUNTS = 1e4
"""Total to which counts are scaled before fold changes are taken, with a pseudocount of 1."""


class Sum(NamedTuple):
    """A quantity that is accumulated over cells, so that replicates need not be kept.

    Attributes
    ----------
    of
        Function of the values and the axis to sum over.
    combine
        Joins two parts: ``np.add``, ``np.maximum``.
    start
        Result for no values.
    """

    of: Callable[[Floats, int], Floats]
    combine: np.ufunc
    start: float = 0.0


SUMS = {
    "total": Sum(lambda x, axis: x.sum(axis=axis), np.add),
    "squares": Sum(lambda x, axis: np.square(x).sum(axis=axis), np.add),
    "zeros": Sum(lambda x, axis: (x == 0).sum(axis=axis).astype(np.float64), np.add),
    "maximum": Sum(lambda x, axis: x.max(axis=axis), np.maximum, -np.inf),
}
"""By field of `Moments`."""


@dataclass(frozen=True)
class Moments:
    """Sums that statistics are computed from: of each gene over cells, or of each cell over genes.

    Parameters
    ----------
    n
        Number of values summed; broadcasts with the others.
    total, squares, zeros, maximum
        Sum of the values, sum of their squares, how many are 0, the largest: see `SUMS`.
    """

    n: Floats
    total: Floats
    squares: Floats
    zeros: Floats
    maximum: Floats

    @classmethod
    def of(cls, x: Floats, axis: int) -> Self:
        """Sum up `x` over one axis."""
        sums = {name: each.of(x, axis) for name, each in SUMS.items()}
        return cls(n=np.array(float(x.shape[axis])), **sums)


def mean(m: Moments) -> Floats:
    """Mean."""
    return m.total / m.n


def variance(m: Moments) -> Floats:
    """Variance of the population: divided by n, not n - 1."""
    return np.maximum(m.squares / m.n - np.square(m.total / m.n), 0.0)


def coefficient_of_variation(m: Moments) -> Floats:
    """Ratio of standard deviation to mean; NaN where the mean is 0."""
    return _ratio(np.sqrt(variance(m)), mean(m))


def zero_fraction(m: Moments) -> Floats:
    """Share of the values that are exactly 0."""
    return m.zeros / m.n


def maximum(m: Moments) -> Floats:
    """Largest value."""
    return m.maximum


def library_size(m: Moments) -> Floats:
    """Sum of the values."""
    return m.total


@dataclass(frozen=True)
class BuiltIn:
    """A built-in statistic: how it is computed, and how figures show it.

    Parameters
    ----------
    of
        Function from moments to the value of each gene or cell.
    title, unit
        Title and unit in figures.
    logs
        Whether figures show it on a logarithmic scale.
    of_genes
        Whether it is computed for genes too, or for cells only.
    trend
        Whether its trend against the mean of genes is computed, under its name and ``_trend``.
    geometric
        Whether that trend averages geometrically, where the data are counts.
    needs_counts
        Whether it has a meaning for counts only, not for values that may be negative.
    """

    of: Callable[[Moments], Floats]
    title: str
    unit: str
    logs: bool = False
    of_genes: bool = True
    trend: bool = False
    geometric: bool = False
    needs_counts: bool = False

    def __call__(self, moments: Moments) -> Floats:
        """Return its value of each gene or cell."""
        return self.of(moments)


CELL_STATISTICS: dict[str, BuiltIn] = {
    "library_size": BuiltIn(
        library_size, "library size", "counts", logs=True, of_genes=False, needs_counts=True
    ),
    "mean": BuiltIn(mean, "mean", "counts", logs=True),
    "variance": BuiltIn(
        variance, "variance", "counts squared", logs=True, trend=True, geometric=True
    ),
    "cv": BuiltIn(
        coefficient_of_variation,
        "coefficient of variation",
        "no unit",
        logs=True,
        needs_counts=True,
    ),
    "zero_fraction": BuiltIn(
        zero_fraction, "zero fraction", "share", trend=True, needs_counts=True
    ),
    "maximum": BuiltIn(maximum, "maximum", "counts", logs=True),
}
"""The statistics of cells, by name. One added here is computed, named and drawn everywhere."""
GENE_STATISTICS = {name: each for name, each in CELL_STATISTICS.items() if each.of_genes}
TRENDS = {f"{name}_trend": name for name, each in GENE_STATISTICS.items() if each.trend}
CORRELATION, EFFECT, CALIBRATION = "correlation", "effect", "calibration"
EFFECTS = ("abs_log2_fold_change", "abs_difference", "effect_agreement")
"""Statistics that summarise effects over genes."""
NEED_COUNTS = frozenset(
    name
    for name in (*CELL_STATISTICS, *TRENDS)
    if CELL_STATISTICS[TRENDS.get(name, name)].needs_counts
)
"""Statistics with no meaning for data that are not counts."""
ALL_STATISTICS = (*CELL_STATISTICS, *TRENDS, CORRELATION, EFFECT, CALIBRATION)


def chosen_statistics(names: object, *, counts: bool, described: str) -> tuple[str, ...]:
    """Return the statistics asked for; by default all that have a meaning.

    Parameters
    ----------
    names
        Some of `ALL_STATISTICS`, or ``None``.
    counts
        Whether the data are counts.
    described
        Name of the source of the data, for the error.

    Raises
    ------
    TypeError
        If `names` is not a list of names.
    ValueError
        If a name is unknown, or the statistic has no meaning for data that are not counts.
    """
    if names is None:
        return tuple(n for n in ALL_STATISTICS if counts or n not in NEED_COUNTS)
    if isinstance(names, str) or not isinstance(names, list | tuple | set):
        msg = f"statistics must be a list of names, such as ['variance'], not {names!r}."
        raise TypeError(msg)
    unknown = [name for name in names if name not in ALL_STATISTICS]
    if unknown:
        msg = (
            f"{unknown} are not statistics; those are {list(ALL_STATISTICS)}. Give your own as "
            "functions={name: function}."
        )
        raise ValueError(msg)
    senseless = sorted(NEED_COUNTS.intersection(names))
    if senseless and not counts:
        msg = (
            f"{', '.join(senseless)} has no meaning with {described}: its data are not counts, "
            "so that values may be negative and hardly any is exactly 0. "
            f"Use others: {[n for n in ALL_STATISTICS if n not in NEED_COUNTS]}."
        )
        raise ValueError(msg)
    return tuple(name for name in ALL_STATISTICS if name in names)


def fold_change(total: Floats, reference: Floats) -> Floats:
    """log2 fold change of pooled counts: of each gene's count per 10,000, plus 1.

    Parameters
    ----------
    total, reference
        Sum of the counts of each gene in both groups of cells, ``[..., genes]``.
    """
    return np.log2(_per_ten_thousand(total) + 1) - np.log2(_per_ten_thousand(reference) + 1)


def _per_ten_thousand(total: Floats) -> Floats:
    return np.nan_to_num(_ratio(PER_COUNTS * total, total.sum(axis=-1, keepdims=True)))


def correlation(n: Floats, total: Floats, products: Floats) -> Floats:
    """Pearson correlation of each pair of genes, NaN where one of them is constant.

    Parameters
    ----------
    n
        Number of cells, broadcasts with `products`.
    total, products
        Sums of the values, ``[..., genes]``, and of their products, ``[..., genes, genes]``.

    Returns
    -------
    ``[..., pairs]``, the upper triangle row by row.
    """
    means = total / n[..., 0]
    covariance = products / n - means[..., :, None] * means[..., None, :]
    variances = np.diagonal(covariance, axis1=-2, axis2=-1)
    # The variance of a constant, which rounding leaves slightly above 0, is set to 0.
    variances = np.where(variances > 1e-12 * (1 + np.square(means)), variances, 0.0)
    deviations = np.sqrt(variances)
    scales = deviations[..., :, None] * deviations[..., None, :]
    rows, columns = np.triu_indices(total.shape[-1], k=1)
    found = _ratio(covariance[..., rows, columns], scales[..., rows, columns])
    return np.clip(found, -1, 1)


def trend(means: Floats, values: Floats, edges: Floats, *, geometric: bool) -> Floats:
    """Average of a statistic over the genes whose mean lies between two edges.

    Parameters
    ----------
    means, values
        Mean and value of each gene, ``[..., genes]``; genes without counts are left out if
        `geometric`.
    edges
        Inner edges of the bins, ascending; the outer bins are open.
    geometric
        Take the geometric mean of the values, leaving out those that are 0.

    Returns
    -------
    ``[..., bins]``; NaN in a bin without genes.
    """
    n_bins = len(edges) + 1
    used = np.isfinite(values) & ((values > 0) if geometric else True)
    with np.errstate(divide="ignore", invalid="ignore"):
        transformed = np.where(used, np.log(values) if geometric else values, 0.0)
    bins = np.digitize(means, edges)
    averages = np.full((*means.shape[:-1], n_bins), np.nan)
    for b in range(n_bins):
        inside = used & (bins == b)
        averages[..., b] = _ratio((transformed * inside).sum(-1), inside.sum(-1))
    return np.exp(averages) if geometric else averages


def _ratio(above: Floats, below: Floats) -> Floats:
    """Divide; NaN where the divisor is 0."""
    divisor = np.where(below == 0, np.nan, below)
    return np.asarray(above / divisor)
