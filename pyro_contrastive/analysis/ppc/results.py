"""From sums to the tables of a check."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from pyro_contrastive.analysis.ppc.collect import PIT_BINS, Collected, Plan, SampleSums
from pyro_contrastive.analysis.ppc.statistics import (
    CORRELATION,
    EFFECT,
    GENE_STATISTICS,
    TRENDS,
    Moments,
    correlation,
    fold_change,
    mean,
    trend,
)
from pyro_contrastive.analysis.ppc.strata import Group
from pyro_contrastive.analysis.ppc.sums import Floats, GeneSums
from pyro_contrastive.analysis.ppc.tables import (
    ALL,
    compare,
    compare_with_nominal,
    join,
    overall_row,
    rows,
)

EVERY: Group = (ALL, ALL)
MAX_BINS, GENES_PER_BIN = 10, 5
Tables = dict[str, list[pd.DataFrame]]


def all_tables(plan: Plan, collected: Collected) -> dict[str, pd.DataFrame]:
    """Make every table of a check; empty ones for what was not asked for."""
    parts: Tables = {
        name: []
        for name in ("overall", "genes", "cells", "trends", "correlations", "effects", "custom")
    }
    both = collected.observed, collected.replicated
    _genes(plan, *both, parts)
    _cells(plan, *both, parts)
    _trends(plan, *both, parts)
    _correlations(plan, *both, parts)
    _effects(plan, *both, parts)
    _custom(plan, *both, parts)
    calibration, pit = _calibration(plan, collected)
    tables = {name: join(found) for name, found in parts.items()}
    return {**tables, "calibration": join(calibration), "pit": join(pit)}


def _genes(plan: Plan, observed: SampleSums, replicated: SampleSums, parts: Tables) -> None:
    wanted = [name for name in GENE_STATISTICS if name in plan.names]
    for group in plan.groups.names if wanted else ():
        one, many = _moments(plan, observed, group), _moments(plan, replicated, group)
        for name in wanted:
            x, y = GENE_STATISTICS[name](one)[0], GENE_STATISTICS[name](many)
            parts["genes"].append(_rows(plan, name, group, x, y, gene=plan.gene_names))
            parts["overall"].append(overall_row(name, "gene", group, x, y, plan.interval))


def _cells(plan: Plan, observed: SampleSums, replicated: SampleSums, parts: Tables) -> None:
    for name, values in observed.cells.items():
        x, y = values[0], replicated.cells[name]
        parts["cells"].append(_rows(plan, name, EVERY, x, y, cell=plan.cell_names))
        for group in plan.groups.names:
            cells = plan.groups.cells(group)
            parts["overall"].append(
                overall_row(name, "cell", group, x[cells], y[:, cells], plan.interval)
            )


def _trends(plan: Plan, observed: SampleSums, replicated: SampleSums, parts: Tables) -> None:
    wanted = [name for name in TRENDS if name in plan.names]
    if not wanted:
        return
    means = mean(_moments(plan, observed, EVERY))[0]
    expressed = means[means > 0] if plan.counts else means
    n_bins = int(np.clip(len(expressed) // GENES_PER_BIN, 1, MAX_BINS))
    edges = np.unique(np.quantile(expressed, np.arange(1, n_bins) / n_bins))
    # A gene without counts has no variance, and no place on the logarithmic axis of a trend.
    positions = np.where((means > 0) | (not plan.counts), means, np.nan)
    centres = trend(positions, positions, edges, geometric=plan.counts)
    for group in plan.groups.names:
        one, many = _moments(plan, observed, group), _moments(plan, replicated, group)
        for name in wanted:
            geometric = plan.counts and GENE_STATISTICS[TRENDS[name]].geometric
            of_mean = GENE_STATISTICS[TRENDS[name]]
            x, y = (
                trend(
                    mean(m),
                    np.where((mean(m) > 0) | (not plan.counts), of_mean(m), np.nan),
                    edges,
                    geometric=geometric,
                )
                for m in (one, many)
            )
            bins = {"bin": np.arange(len(centres)), "bin_mean": centres}
            parts["trends"].append(_rows(plan, name, group, x[0], y, **bins))
            parts["overall"].append(overall_row(name, "bin", group, x[0], y, plan.interval))


def _correlations(plan: Plan, observed: SampleSums, replicated: SampleSums, parts: Tables) -> None:
    if CORRELATION not in plan.names or observed.pairs is None or replicated.pairs is None:
        return
    genes = plan.gene_names[plan.pair_genes]
    first, second = np.triu_indices(len(genes), k=1)
    for group in plan.groups.names if len(first) else ():
        members = plan.groups.members(group)
        x = correlation(*observed.pairs.of(members))[0]
        y = correlation(*replicated.pairs.of(members))
        pair = {"gene": genes[first], "other_gene": genes[second]}
        parts["correlations"].append(_rows(plan, CORRELATION, group, x, y, **pair))
        row = overall_row("abs_correlation", "pair", group, abs(x), abs(y), plan.interval)
        parts["overall"].append(row)


def _effects(plan: Plan, observed: SampleSums, replicated: SampleSums, parts: Tables) -> None:
    if EFFECT not in plan.names or plan.contrast is None:
        return
    name, change = _effect(plan)
    for group in plan.groups.names:
        if group[0] != plan.contrast[0] or group == plan.contrast:
            continue
        x = change(observed.genes, group)[0]
        y = change(replicated.genes, group)
        parts["effects"].append(_rows(plan, name, group, x, y, gene=plan.gene_names))
        row = overall_row(f"abs_{name}", "gene", group, abs(x), abs(y), plan.interval)
        parts["overall"].append(row)
        parts["overall"].append(_agreement(plan, group, x, y))


def _effect(plan: Plan) -> tuple[str, Callable[[GeneSums | None, Group], Floats]]:
    def moments(sums: GeneSums | None, group: Group | None) -> Floats:
        assert sums is not None
        assert group is not None
        m = sums.of(plan.groups.members(group))
        return m.total if plan.counts else mean(m)

    if plan.counts:
        return "log2_fold_change", lambda sums, group: fold_change(
            moments(sums, group), moments(sums, plan.contrast)
        )
    return "difference", lambda sums, group: moments(sums, group) - moments(sums, plan.contrast)


def _agreement(plan: Plan, group: Group, x: Floats, y: Floats) -> pd.DataFrame:
    """Correlation, over genes, of effects with those of the (other) replicates' mean."""
    total, n = y.sum(axis=0), len(y)

    def with_replicates(values: Floats, others: Floats) -> float:
        a, b = values - values.mean(), others - others.mean()
        scale = np.sqrt(np.square(a).sum() * np.square(b).sum())
        return float((a * b).sum() / scale) if scale > 0 else np.nan

    observed = np.array([with_replicates(x, total / n)])
    left_out = [with_replicates(v, (total - v) / (n - 1)) for v in y] if n > 1 else [np.nan]
    return overall_row(
        "effect_agreement", "data", group, observed, np.array(left_out)[:, None], plan.interval
    )


def _calibration(plan: Plan, collected: Collected) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    ranks, calibration, pit = collected.ranks, [], []
    for group in plan.groups.names if ranks is not None else ():
        assert ranks is not None
        members = plan.groups.members(group)
        covered, error = ranks.coverage(members)
        levels = np.array(plan.levels)
        compared = compare_with_nominal(covered, levels, error, plan.interval)
        made = rows("coverage", group, compared, level=levels, unit="entry")
        names = [f"coverage {level:g}" for level in levels]
        calibration.append(made.assign(statistic=names))
        share, error = ranks.shares(members)
        compared = compare_with_nominal(
            share, np.full(PIT_BINS, 1 / PIT_BINS), error, plan.interval
        )
        pit.append(rows("pit", group, compared, bin_left=np.arange(PIT_BINS) / PIT_BINS))
    return calibration, pit


def _custom(plan: Plan, observed: SampleSums, replicated: SampleSums, parts: Tables) -> None:
    for (name, group), values in observed.whole.items():
        x, y = values[0], np.stack(replicated.whole[name, group])
        per = plan.functions[name].per
        gene = plan.gene_names if per == "gene" else ""
        parts["custom"].append(_rows(plan, name, group, x, y, gene=gene, cell="", unit=per))
        if per == "gene":
            parts["overall"].append(overall_row(name, "gene", group, x, y, plan.interval))
    for name in plan.functions_of_cells:
        x, y = observed.cells[name][0], replicated.cells[name]
        made = _rows(plan, name, EVERY, x, y, gene="", cell=plan.cell_names, unit="cell")
        parts["custom"].append(made)


def _rows(
    plan: Plan, name: str, group: Group, x: Floats, y: Floats, **units: object
) -> pd.DataFrame:
    return rows(name, group, compare(x, y, plan.interval), **units)


def _moments(plan: Plan, sums: SampleSums, group: Group) -> Moments:
    assert sums.genes is not None
    return sums.genes.of(plan.groups.members(group))
