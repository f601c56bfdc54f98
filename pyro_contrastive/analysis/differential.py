"""Differential expression between two groups of cells, from draws of the posterior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive._tools.torch_tools import numpy_rng
from pyro_contrastive.analysis import differential_statistics as statistics
from pyro_contrastive.analysis.decoding import decode_cells
from pyro_contrastive.analysis.differential_groups import GroupPair
from pyro_contrastive.analysis.differential_settings import BatchCodes, DifferentialSettings
from pyro_contrastive.analysis.differential_statistics import Draws, Vector
from pyro_contrastive.analysis.means.results import reason_not_tested
from pyro_contrastive.analysis.query import EXPRESSION_SITES, Decoding, Query
from pyro_contrastive.cells import X
from pyro_contrastive.likelihoods import Likelihood
from pyro_contrastive.observed.source import Observed

# The change is reported with a smaller pseudocount than it is tested with, as in scvi-tools: the
# larger one keeps silent genes from being tagged, but would shrink the changes reported.
REPORTED_PSEUDOCOUNT = 1e-3


def differential_expression(
    query: Query,
    pairs: Sequence[GroupPair],
    genes: Sequence[str],
    settings: DifferentialSettings,
    *,
    batches: BatchCodes = ((), ()),
) -> pd.DataFrame:
    """Compare groups of cells gene by gene; random numbers come from torch's global state.

    Parameters
    ----------
    query
        The model and the data; which cells is up to `pairs`. Target cells are decoded with their
        salient latent and background cells with 0 in its place, cell by cell: see
        :func:`~pyro_contrastive.analysis.differential_groups.with_targets`.
    pairs
        What to compare: see :func:`~pyro_contrastive.analysis.differential_groups.group_pairs`.
    genes
        Names of the genes: the index of the result.
    settings
        Settings of the comparison.
    batches
        See :func:`~pyro_contrastive.analysis.differential_settings.batches_to_decode`.

    Returns
    -------
    One row per gene and pair, with the columns of scvi-tools and ``not_tested``, the most certain
    changes of a pair first, and genes that are not tested last.

    Raises
    ------
    ValueError
        If there are fewer draws than batches, the likelihood has no normalised expression or does
        not use a `threshold_counts` that is set, or a function in the settings returns arrays of
        the wrong shape.
    """
    usual = DifferentialSettings.threshold_counts
    likelihood = query.vae.model.likelihood
    if likelihood.pseudocount is not None and settings.threshold_counts != usual:
        msg = (
            f"threshold_counts={settings.threshold_counts} has no effect with "
            f"{type(likelihood).__name__}, which has a pseudocount of its own."
        )
        raise ValueError(msg)
    rng = numpy_rng()
    tables = []
    for pair in pairs:
        draws1, draws2 = (
            draw_scales(query.of(cells), codes, settings, rng)
            for cells, codes in zip((pair.cells1, pair.cells2), batches, strict=True)
        )
        columns = compare_draws(
            draws1, draws2, query.data.observed[X], pair, settings, batches, rng, likelihood
        )
        too_rare = _too_rare(query, pair, settings)
        tables.append(_table(columns, too_rare, pair, genes, settings))
    return pd.concat(tables)


def _too_rare(query: Query, pair: GroupPair, settings: DifferentialSettings) -> NDArray[np.object_]:
    """Say why a gene is not tested, else empty, ``[genes]``: it has too few counts."""
    counts = query.data.observed[X]
    if not (settings.fewest_counts and query.vae.model.likelihood.support.is_discrete):
        return np.full(counts.shape[1], "", dtype=object)
    n_counts = np.zeros(counts.shape[1])
    for _, rows in counts.blocks(np.concatenate([pair.cells1, pair.cells2])):
        n_counts += np.asarray(rows.sum(axis=0)).reshape(-1)
    return reason_not_tested(n_counts, settings.fewest_counts)


def draw_scales(
    query: Query,
    codes: Sequence[int],
    settings: DifferentialSettings,
    rng: np.random.Generator,
) -> Draws:
    """Draw cells of a group with replacement, and normalised expression for each draw.

    Parameters
    ----------
    query
        The model, the data and the cells of the group.
    codes
        Batches to decode under, each for an equal share of the draws (to within one); empty: each
        cell's own.
    settings
        Number of draws.
    rng
        Chooses the cells.

    Returns
    -------
    ``[n_samples_overall, genes]``, batch after batch.

    Raises
    ------
    ValueError
        If there are fewer draws than batches.
    """
    if settings.n_samples_overall < len(codes):
        msg = (
            f"n_samples_overall={settings.n_samples_overall} is less than one draw for each of "
            f"{len(codes)} batches."
        )
        raise ValueError(msg)
    chosen = rng.choice(query.cells, settings.n_samples_overall)
    draws = []
    for share, batch in _shares(chosen, codes):
        site = EXPRESSION_SITES[settings.quantity][0]
        decoding = Decoding(site=site, n_samples=settings.n_samples, batches=batch)
        draws += decode_cells(replace(query, cells=share, decoding=decoding))
    return np.concatenate(draws)


def _shares(
    rows: NDArray[np.int64], codes: Sequence[int]
) -> list[tuple[NDArray[np.int64], tuple[int, ...]]]:
    """Split rows evenly over the batches they are decoded under."""
    if not codes:
        return [(rows, ())]
    parts = np.array_split(rows, len(codes))
    return [(part, (code,)) for part, code in zip(parts, codes, strict=True)]


def pair_draws(
    draws1: Draws,
    draws2: Draws,
    batches: BatchCodes,
    settings: DifferentialSettings,
    rng: np.random.Generator,
) -> tuple[Draws, Draws]:
    """Return the draws of the two groups that are compared, row by row.

    Draws decoded under the same batches are paired within a batch. If the groups were decoded
    under different batches, the second is shuffled, so that every batch meets every other.
    """
    codes1, codes2 = batches
    if list(codes1) != list(codes2):
        draws2 = rng.permutation(draws2)
    if not settings.use_permutation:
        return draws1, draws2
    blocks = _shares(np.arange(len(draws1)), codes1)
    sizes = [len(part) for part, _ in _shares(np.arange(settings.m_permutation), codes1)]
    rows1, rows2 = (
        np.concatenate([rng.choice(b, n) for (b, _), n in zip(blocks, sizes, strict=True)])
        for _ in range(2)
    )
    return draws1[rows1], draws2[rows2]


def compare_draws(
    draws1: Draws,
    draws2: Draws,
    counts: Observed,
    pair: GroupPair,
    settings: DifferentialSettings,
    batches: BatchCodes,
    rng: np.random.Generator,
    likelihood: Likelihood,
) -> dict[str, Any]:
    """Return the columns of one comparison, in scvi-tools' order."""
    counts1, counts2 = (
        statistics.count_statistics(counts, cells) for cells in (pair.cells1, pair.cells2)
    )
    x, y = pair_draws(draws1, draws2, batches, settings, rng)
    details: dict[str, Any] = {}
    if settings.mode == "change":
        raw_means = (counts1["raw_mean"], counts2["raw_mean"])
        p, details = _test_change(x, y, raw_means, settings, rng, likelihood.pseudocount)
        columns: dict[str, Any] = {"proba_de": p, "proba_not_de": 1 - p}
    else:
        p = (x > y).mean(axis=0)
        columns = {"proba_m1": p, "proba_m2": 1 - p}
    columns["bayes_factor"] = statistics.log_odds(p)
    columns["scale1"] = draws1.mean(axis=0, dtype=np.float64)
    columns["scale2"] = draws2.mean(axis=0, dtype=np.float64)
    columns |= details
    if settings.all_stats:
        if not likelihood.uses_library:
            # Data without a library size are not counts that could be scaled to 10,000.
            for counts_of in (counts1, counts2):
                del counts_of["raw_normalized_mean"]
        for name in counts1:
            columns |= {f"{name}1": counts1[name], f"{name}2": counts2[name]}
    return columns


def _test_change(
    draws1: Draws,
    draws2: Draws,
    raw_means: Sequence[Vector],
    settings: DifferentialSettings,
    rng: np.random.Generator,
    usual_pseudocount: float | None,
) -> tuple[Vector, dict[str, Any]]:
    """Return the probability of a change per gene, and the columns that describe the change."""
    pseudocount = usual_pseudocount if settings.pseudocounts is None else settings.pseudocounts
    if pseudocount is None:
        pseudocount = statistics.estimate_pseudocount(
            (draws1, draws2), raw_means, settings.threshold_counts
        )
    change_fn = settings.change_fn if callable(settings.change_fn) else statistics.log_fold_change
    change = change_fn(draws1, draws2, pseudocount)
    _check_shape(change, draws1, "change_fn")
    up, down, delta = _directions(change, settings, rng)
    p = statistics.probability_of_change(up, down, settings.test_mode)
    # A likelihood with a pseudocount of its own needs no smaller one: its scale begins at 0.
    smaller = REPORTED_PSEUDOCOUNT if usual_pseudocount is None else 1.0
    reported = change_fn(draws1, draws2, smaller * pseudocount)
    described = statistics.describe(reported, settings.cred_interval_lvls)
    columns = {f"lfc_{name}": value for name, value in described.items()}
    return p, {"pseudocounts": pseudocount, "delta": delta} | columns


def _directions(
    change: Draws, settings: DifferentialSettings, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], float]:
    """Return which changes are up, which are down, and the delta beyond which they are."""
    if settings.m1_domain_fn is not None:
        up, down = settings.m1_domain_fn(change)
        _check_shape(up, change, "m1_domain_fn")
        _check_shape(down, change, "m1_domain_fn")
        return up, down, float("nan")
    delta = settings.delta
    if delta is None:
        delta = statistics.estimate_delta(change.mean(axis=0, dtype=np.float64), rng)
    return *statistics.beyond(change, delta), delta


def _check_shape(found: Any, expected: Draws, name: str) -> None:
    if np.shape(found) != expected.shape:
        msg = (
            f"{name} must return arrays of its arguments' shape, {expected.shape} (pairs of "
            f"draws, genes), not {np.shape(found)}."
        )
        raise ValueError(msg)


def _table(
    columns: dict[str, Any],
    not_tested: NDArray[np.object_],
    pair: GroupPair,
    genes: Sequence[str],
    settings: DifferentialSettings,
) -> pd.DataFrame:
    """Make the table of one comparison: tagged, named and sorted."""
    key = "proba_de" if settings.mode == "change" else "bayes_factor"
    table = pd.DataFrame(columns, index=genes)
    tested = not_tested == ""
    if settings.mode == "change":
        tagged = np.zeros(len(table), dtype=bool)
        tagged[tested] = statistics.tag_by_expected_fdr(table.loc[tested, key], settings.fdr_target)
        table[f"is_de_fdr_{settings.fdr_target}"] = tagged
    if settings.fewest_counts:
        table["not_tested"] = not_tested
    if pair.name1 is not None:
        table["comparison"] = f"{pair.name1} vs {pair.name2}"
        table["group1"] = pair.name1
        table["group2"] = pair.name2
    order = np.lexsort((-table[key].to_numpy(), ~tested))  # stable
    return table.iloc[order]
