"""The check itself: data and replicates in, tidy tables out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive.analysis.ppc.check import PosteriorPredictiveCheck
from pyro_contrastive.analysis.ppc.collect import Collected, Plan, dense
from pyro_contrastive.analysis.ppc.custom import Function, Statistic, as_statistics
from pyro_contrastive.analysis.ppc.groups import CellGroups
from pyro_contrastive.analysis.ppc.results import all_tables
from pyro_contrastive.analysis.ppc.statistics import CALIBRATION, CORRELATION, chosen_statistics
from pyro_contrastive.analysis.ppc.sums import Draws
from pyro_contrastive.data.indices import in_order
from pyro_contrastive.observed.matrix import Matrix, row_sums

MOST_MEMORY = 2e9
"""Bytes of one dense replicate, above which statistics of whole replicates are refused."""
CORRELATED_GENES = 30


def check_against_replicates(
    observed: Matrix,
    replicates: NDArray[Any] | Callable[[], Iterable[Draws]],
    *,
    counts: bool = True,
    groups: Mapping[str, ArrayLike] | None = None,
    contrast: tuple[str, str] | None = None,
    statistics: Iterable[str] | None = None,
    functions: Mapping[str, Function | Statistic] | None = None,
    n_samples: int | None = None,
    whole: Callable[[int], Draws] | None = None,
    gene_names: ArrayLike | None = None,
    cell_names: ArrayLike | None = None,
    correlation_genes: ArrayLike | None = None,
    interval: float = 0.9,
    levels: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95),
    model: str = "model",
    described: str = "this likelihood",
    seed: int | None = None,
) -> PosteriorPredictiveCheck:
    """Compare data with replicates of them; knows of no model and no AnnData.

    Replicates pass once, some cells at a time. What is kept of them are sums: of each gene in each
    group of cells, of each cell, and of the chosen pairs of genes. So memory grows with samples x
    (genes x groups + cells), never with cells x genes x samples.

    Parameters
    ----------
    observed
        The data, ``[cells, genes]``, CSR or dense.
    replicates
        ``[samples, cells, genes]``; or a function that returns an iterator of such arrays, each for
        the next few cells, in the order of `observed`.
    counts
        Are the data counts. If not, statistics that need them are left out.
    groups
        Labels of the cells by key, each ``[cells]``: statistics of genes are found in each group.
        A Series is brought into the order of `cell_names` by its index.
    contrast
        A key of `groups` and its background group: effects are those of its other groups against
        it. Default: no effects.
    statistics
        Names; default all that have a meaning. See :data:`ALL_STATISTICS
        <pyro_contrastive.analysis.ppc.statistics.ALL_STATISTICS>`.
    functions
        The user's own, by name: from ``[cells, genes]`` to a value per cell, per gene, or a single
        one. One per cell must depend on the cell's own counts only, and is called on some cells at
        a time. Any other is called with all cells of a replicate (of each group) at once, and a
        dense replicate is in memory: 4 bytes x cells x genes.
    n_samples
        Number of replicates; needed where `replicates` is a function.
    whole
        Returns a replicate as a whole, by its number, ``[cells, genes]``; for functions that need
        it. Default: taken from `replicates`, if that is an array.
    gene_names, cell_names
        For the tables; default numbers.
    correlation_genes
        Positions of the genes whose pairs are looked at; default the 30 of largest variance, of
        log(1 + counts).
    interval
        Probability between ``lower`` and ``upper``; takes at least 2 / (1 - `interval`) - 1
        replicates.
    levels
        Probabilities of the intervals whose coverage is counted.
    model
        Name of the model in the tables.
    described
        What gave the data, for errors.
    seed
        Seed of the randomised ranks.

    Raises
    ------
    TypeError
        If `statistics` or `functions` are not given by name.
    ValueError
        If sizes disagree, there are no cells, too few replicates, a statistic is unknown or has no
        meaning, or a function needs more memory than is allowed.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> data, draws = rng.poisson(3.0, (50, 4)), rng.poisson(3.0, (20, 50, 4))
    >>> check = check_against_replicates(data, draws, statistics=["variance"], seed=0)
    >>> check.summary()[["unit", "statistic", "reading"]].to_numpy().tolist()
    [['gene', 'variance', 'agrees'], ['cell', 'variance', 'agrees']]
    """
    names = chosen_statistics(
        None if statistics is None else _listed(statistics), counts=counts, described=described
    )
    n_cells, n_genes = observed.shape
    if n_cells == 0:
        msg = "There are no cells to check."
        raise ValueError(msg)
    stream, whole, n_samples = _stream(replicates, whole, n_samples, observed.shape)
    _check_interval(interval, n_samples, levels)
    named = None if cell_names is None else pd.Index(np.asarray(cell_names))
    by_key = {key: in_order(of, named, f"groups[{key!r}]") for key, of in (groups or {}).items()}
    cell_groups = CellGroups(by_key, n_cells)
    if contrast is not None and contrast not in cell_groups.names:
        msg = f"contrast: {contrast[1]!r} is not a group of {contrast[0]!r}."
        raise ValueError(msg)
    own = as_statistics(functions, lambda n: dense(observed[:n]))
    _check_memory(own, n_cells, n_genes)
    plan = Plan(
        names=names,
        groups=cell_groups,
        contrast=contrast,
        functions=own,
        n_samples=n_samples,
        counts=counts,
        interval=interval,
        levels=levels if CALIBRATION in names else (),
        pair_genes=_pair_genes(correlation_genes, observed, names, logs=counts),
        gene_names=_names(gene_names, n_genes, "gene_names"),
        cell_names=_names(cell_names, n_cells, "cell_names"),
    )
    collected = Collected(plan, n_genes, np.random.default_rng(seed))
    collected.take(observed, stream)
    collected.take_whole(observed, whole)
    tables = {n: t.assign(model=model) for n, t in all_tables(plan, collected).items()}
    return PosteriorPredictiveCheck(
        **tables, interval=interval, n_samples=n_samples, data=_fingerprint(observed)
    )


def _listed(statistics: Iterable[str]) -> object:
    return statistics if isinstance(statistics, str | list | tuple | set) else list(statistics)


def _stream(
    replicates: NDArray[Any] | Callable[[], Iterable[Draws]],
    whole: Callable[[int], Draws] | None,
    n_samples: int | None,
    shape: tuple[int, ...],
) -> tuple[Iterable[Draws], Callable[[int], Draws] | None, int]:
    if callable(replicates):
        if n_samples is None:
            msg = "Give n_samples= beside a function that returns replicates."
            raise ValueError(msg)
        return replicates(), whole, n_samples
    array = np.asarray(replicates, dtype=np.float32)
    if array.ndim != 3 or array.shape[1:] != tuple(shape):  # noqa: PLR2004 - samples, cells, genes
        msg = (
            f"replicates has shape {list(array.shape)}; expected [samples, {shape[0]}, {shape[1]}]."
        )
        raise ValueError(msg)
    return [array], whole or (lambda s: array[s]), len(array)


def _check_interval(interval: float, n_samples: int, levels: tuple[float, ...]) -> None:
    for value in (interval, *levels):
        if not 0 < value < 1:
            msg = f"interval and levels must be between 0 and 1, not {value}."
            raise ValueError(msg)
    fewest = int(np.ceil(2 / (1 - interval) - 1e-9)) - 1
    if n_samples < fewest:
        msg = (
            f"An interval of {interval} takes at least n_samples={fewest} replicates, not "
            f"{n_samples}: draw more, or use a smaller interval."
        )
        raise ValueError(msg)


def _check_memory(own: Mapping[str, Statistic], n_cells: int, n_genes: int) -> None:
    needs = [name for name, s in own.items() if s.per != "cell"]
    size = 4.0 * n_cells * n_genes
    if needs and size > MOST_MEMORY:
        msg = (
            f"{needs} look at all cells at once: a dense replicate takes {size / 1e9:.1f} GB, more "
            f"than {MOST_MEMORY / 1e9:.0f} GB. Choose fewer cells or genes, or write a function "
            "that returns one value per cell: it is given some cells at a time."
        )
        raise ValueError(msg)


def _pair_genes(
    given: ArrayLike | None, observed: Matrix, names: tuple[str, ...], *, logs: bool
) -> NDArray[np.int64]:
    if CORRELATION not in names:
        return np.empty(0, dtype=np.int64)
    if given is not None:
        return np.asarray(given, dtype=np.int64)
    values = observed.copy()
    if logs:
        values = np.log1p(values) if isinstance(values, np.ndarray) else values.log1p()
    means = np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()
    squares = values**2 if isinstance(values, np.ndarray) else values.multiply(values)
    spread = np.asarray(squares.mean(axis=0, dtype=np.float64)).ravel() - means**2
    return np.sort(np.argsort(-spread, kind="stable")[:CORRELATED_GENES])


def _names(given: ArrayLike | None, n: int, what: str) -> NDArray[Any]:
    names = np.asarray([str(i) for i in range(n)] if given is None else given, dtype=object)
    if names.shape != (n,):
        msg = f"{what} has {names.size} names for {n}."
        raise ValueError(msg)
    return names


def _fingerprint(observed: Matrix) -> str:
    sums = row_sums(observed), np.asarray(observed.sum(axis=0, dtype=np.float64)).ravel()
    return hashlib.sha256(b"".join(s.tobytes() for s in sums)).hexdigest()
