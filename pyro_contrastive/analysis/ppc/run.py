"""The check itself, which turns data and replicates into tidy tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive.analysis.ppc.check import PosteriorPredictiveCheck
from pyro_contrastive.analysis.ppc.collect import Collected, Plan, dense
from pyro_contrastive.analysis.ppc.custom import Statistic, as_statistics
from pyro_contrastive.analysis.ppc.inputs import CheckedData, CheckSettings, ReplicateStream
from pyro_contrastive.analysis.ppc.results import all_tables
from pyro_contrastive.analysis.ppc.statistics import CALIBRATION, CORRELATION, chosen_statistics
from pyro_contrastive.analysis.ppc.strata import Strata
from pyro_contrastive.data.indices import in_order
from pyro_contrastive.observed.matrix import Matrix, row_sums

MAX_BYTES = 2e9
"""Size of a dense replicate above which statistics of whole replicates are refused."""
CORRELATED_GENES = 30


def check_against_replicates(
    data: CheckedData,
    replicates: NDArray[Any] | ReplicateStream,
    settings: CheckSettings | None = None,
    *,
    model: str = "model",
    seed: int | None = None,
) -> PosteriorPredictiveCheck:
    """Compare data with replicates of them, without a model or an AnnData.

    There is one pass over the replicates, some cells at a time. Only sums are kept: of each gene in
    each group of cells, of each cell, and of the chosen pairs of genes. So memory grows with
    samples x (genes x groups + cells), never with cells x genes x samples.

    Parameters
    ----------
    data
        The data, and the groups their cells fall into.
    replicates
        ``[samples, cells, genes]``, or a stream of them.
    settings
        What to compare. Default: all statistics that have a meaning.
    model
        Name of the model in the tables.
    seed
        Seed of the randomised ranks. Default: none.

    Raises
    ------
    TypeError
        If statistics or functions are not given by name.
    ValueError
        If sizes disagree, there are no cells, too few replicates, a statistic is unknown or has no
        meaning, or a function needs more memory than is allowed.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> data, draws = rng.poisson(3.0, (50, 4)), rng.poisson(3.0, (20, 50, 4))
    >>> settings = CheckSettings(statistics=["variance"])
    >>> check = check_against_replicates(CheckedData(data), draws, settings, seed=0)
    >>> check.summary()[["unit", "statistic", "reading"]].to_numpy().tolist()
    [['gene', 'variance', 'agrees'], ['cell', 'variance', 'agrees']]
    """
    plan, stream = _plan(data, replicates, settings or CheckSettings())
    collected = Collected(plan, data.values.shape[1], np.random.default_rng(seed))
    collected.take(data.values, stream.parts())
    collected.take_whole(data.values, stream.whole)
    tables = {n: t.assign(model=model) for n, t in all_tables(plan, collected).items()}
    return PosteriorPredictiveCheck(
        **tables,
        interval=plan.interval,
        n_samples=plan.n_samples,
        data=_fingerprint(data.values),
    )


def _plan(
    data: CheckedData, replicates: NDArray[Any] | ReplicateStream, settings: CheckSettings
) -> tuple[Plan, ReplicateStream]:
    """Check what is asked for, and make every default explicit."""
    asked = settings.statistics
    names = chosen_statistics(
        None if asked is None else _listed(asked), counts=data.are_counts, described=data.described
    )
    observed = data.values
    n_cells, n_genes = observed.shape
    if n_cells == 0:
        msg = "There are no cells to check."
        raise ValueError(msg)
    stream = (
        replicates
        if isinstance(replicates, ReplicateStream)
        else ReplicateStream.of(replicates, observed.shape)
    )
    settings.check(stream.n_samples)
    strata = _strata(data, n_cells)
    own = as_statistics(settings.functions, lambda n: dense(observed[:n]))
    _check_memory(own, n_cells, n_genes)
    plan = Plan(
        names=names,
        groups=strata,
        contrast=data.contrast,
        functions=own,
        n_samples=stream.n_samples,
        counts=data.are_counts,
        interval=settings.interval,
        levels=settings.levels if CALIBRATION in names else (),
        pair_genes=_pair_genes(settings.correlation_genes, observed, names, logs=data.are_counts),
        gene_names=data.names_of_genes(),
        cell_names=data.names_of_cells(),
    )
    return plan, stream


def _strata(data: CheckedData, n_cells: int) -> Strata:
    """Put cells into the groups of every key.

    Raises
    ------
    ValueError
        If the background group of the contrast is not among them.
    """
    named = None if data.cell_names is None else pd.Index(np.asarray(data.cell_names))
    by_key = {key: in_order(of, named, f"groups[{key!r}]") for key, of in data.groups.items()}
    strata = Strata(by_key, n_cells)
    if data.contrast is not None and data.contrast not in strata.names:
        key, background = data.contrast
        msg = f"contrast: {background!r} is not a group of {key!r}."
        raise ValueError(msg)
    return strata


def _listed(statistics: Iterable[str]) -> object:
    if not isinstance(statistics, Iterable):
        msg = f"statistics must be a list of names of statistics, not {statistics!r}."  # type: ignore[unreachable]  # untyped callers
        raise TypeError(msg)
    return statistics if isinstance(statistics, str | list | tuple | set) else list(statistics)


def _check_memory(own: Mapping[str, Statistic], n_cells: int, n_genes: int) -> None:
    needs = [name for name, s in own.items() if s.per != "cell"]
    size = 4.0 * n_cells * n_genes
    if needs and size > MAX_BYTES:
        msg = (
            f"{needs} need all cells at once: a dense replicate takes {size / 1e9:.1f} GB, more "
            f"than {MAX_BYTES / 1e9:.0f} GB. Choose fewer cells or genes, or write a function "
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


def _fingerprint(observed: Matrix) -> str:
    sums = row_sums(observed), np.asarray(observed.sum(axis=0, dtype=np.float64)).ravel()
    return hashlib.sha256(b"".join(s.tobytes() for s in sums)).hexdigest()
