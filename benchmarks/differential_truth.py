"""Which mode of differential expression to take: against simulated truth, beside a t-test.

    python benchmarks/differential_truth.py [--seeds 3] [--models NAME ...] [--scenarios NAME ...]

The counts are simulated from neither model (`pyro_contrastive.testing.simulate_treatment`: cell
types, and a treatment that changes a fifth of the genes and leaves the others unchanged). Treated
and untreated cells are compared gene by gene:

* by single cells, the default mode (lvm-DE: a change beyond delta = 0.25, tagged at an expected
  false discovery rate of 0.05), with 1 and with 25 posterior draws for each cell, and with 25 draws
  of refined posteriors;
* by means, ``mode="means"``, within clusters of the background latent (the default) and within the
  true cell types;
* Welch's t-test of log-normalised counts (each cell scaled to 10,000, log1p), with the
  Benjamini-Hochberg correction at 0.05; and the same restricted to genes with a log2 fold change of
  mean normalised counts of at least delta, the closest that a t-test comes to the test of a change.

The comparison is made for all cells and (rows that end in "few of a type") for at most 30 treated
with 30 untreated cells of each cell type, averaged over types: the models have learned from all
cells but compare single cells, which vary less in a group of one type than in a group of several.

Models (``--models``): "separated", the preset as the README fits it, stopped early (default);
"ours", with the defaults of scvi-tools; "scvi-tools" itself (needs the ``parity`` extra).

A gene is *changed* if its true log2 fold change is at least delta; power is the share of changed
genes that are tagged. The modes ask different questions, so false discoveries are counted in two
ways: "FDR of any" counts tagged genes whose true fold change is 0, "FDR" those that are not
changed. "power at 0.05" is the power if the threshold were set by the truth: the largest share of
changed genes found with at most 5 % false discoveries above the threshold. Prints the mean over
seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from common import (
    OURS,
    REFERENCE,
    Configuration,
    fit_ours,
    fit_reference,
    groups,
    our_differential,
    parser,
    reference_differential,
    show,
    start,
)
from numpy.typing import NDArray
from scipy import stats

from pyro_contrastive.testing import TreatmentSettings, simulate_treatment

DELTA, TARGET = 0.25, 0.05
SCENARIOS = {
    "alike": TreatmentSettings(),
    "one cell type": TreatmentSettings(n_types=1),
    "shallow": TreatmentSettings(n_background=300, n_target=300, mean_total=300.0),
    "treated less deep": TreatmentSettings(treated_depth=0.4),
    "other cell types": TreatmentSettings(type_shift=2.0),
}
SEPARATED = replace(OURS["ours, separated"], train={"schedule": "fast", "early_stopping": True})
CONFIGURATIONS = {"separated": SEPARATED, "ours": Configuration()}
N_FEW = 30
FEW = ", few of a type"


@dataclass(frozen=True)
class Tagged:
    """Which genes are tagged ``[genes]``, and a score to rank them by, the highest first."""

    genes: NDArray[np.bool_]
    score: NDArray[np.floating[Any]]


def from_table(table: pd.DataFrame, names: pd.Index) -> Tagged:
    """Read a table of differential expression; ties are broken by the size of the change."""
    table = table.loc[names]
    if "p_value" in table:
        score = -table["p_value"].fillna(1.0)
    else:
        score = table["proba_de"] + 1e-6 * table["lfc_mean"].abs()
    return Tagged(table[f"is_de_fdr_{TARGET}"].to_numpy(dtype=bool), score.to_numpy())


def t_tests(adata: ad.AnnData, is_target: NDArray[np.bool_]) -> dict[str, Tagged]:
    """Run Welch's test on log-normalised counts, without and with a threshold on the change."""
    counts = adata.X.toarray()
    normalised = 1e4 * counts / counts.sum(1, keepdims=True)
    one, other = (np.log1p(normalised[cells]) for cells in (is_target, ~is_target))
    p = np.nan_to_num(stats.ttest_ind(one, other, equal_var=False).pvalue, nan=1.0)
    means = (normalised[cells].mean(0) + 1e-9 for cells in (is_target, ~is_target))
    found = stats.false_discovery_control(p) <= TARGET
    beyond = abs(np.log2(np.divide(*means))) >= DELTA
    # Rank by -p: p-values that round to 0 are ties, whereas their -log p would be infinite.
    return {
        "t-test": Tagged(found, -p),
        "t-test, change": Tagged(found & beyond, -p * beyond - ~beyond),
    }


def judge(tagged: Tagged, lfc: NDArray[np.float64]) -> dict[str, float]:
    """Compare with the truth; an empty set has no false discoveries."""
    changed, n = abs(lfc) >= DELTA, max(1, int(tagged.genes.sum()))
    order = np.argsort(-tagged.score, kind="stable")
    found = np.cumsum(changed[order])
    clean = np.flatnonzero(1 - found / np.arange(1, len(lfc) + 1) <= TARGET)
    return {
        "tagged": float(tagged.genes.sum()),
        "FDR": (tagged.genes & ~changed).sum() / n,
        "FDR of any": (tagged.genes & (lfc == 0)).sum() / n,
        "power": (tagged.genes & changed).sum() / changed.sum(),
        "power at 0.05": found[clean[-1]] / changed.sum() if len(clean) else 0.0,
    }


def few_of_each_type(
    adata: ad.AnnData, is_target: NDArray[np.bool_]
) -> Iterator[NDArray[np.bool_]]:
    """Yield, for each cell type, a mask of a few of its treated and untreated cells."""
    cell_type = adata.obs["cell_type"].to_numpy()
    for name in np.unique(cell_type):
        chosen = np.zeros(len(adata), dtype=bool)
        for group in groups(is_target, cell_type == name):
            chosen[np.flatnonzero(group)[:N_FEW]] = True
        yield chosen


def true_change(
    adata: ad.AnnData, is_target: NDArray[np.bool_], among: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the true log2 fold change among these cells; 0 for unchanged genes."""
    scale = adata.layers["scale"].astype(np.float64)
    one, other = (np.log2(scale[cells].mean(0)) for cells in groups(is_target, among))
    return np.where(adata.var["lfc"] == 0, 0.0, one - other)


def fit(
    name: str, adata: ad.AnnData, is_target: NDArray[np.bool_], epochs: int | None, seed: int
) -> Any:
    """Fit one of the models."""
    if name == REFERENCE:
        return fit_reference(adata, is_target, epochs=epochs, seed=seed)[0]
    configuration = CONFIGURATIONS[name]
    model, _ = fit_ours(
        adata, "condition", "control", configuration=configuration, epochs=epochs, seed=seed
    )
    model.refine_posterior()  # once for all comparisons
    return model


def methods_of(
    name: str,
    model: Any,
    is_target: NDArray[np.bool_],
    seed: int,
    among: NDArray[np.bool_] | slice,
    *,
    one_type: bool,
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the table of every mode of a model."""
    if name == REFERENCE:
        yield name, reference_differential(model, is_target, among, seed=seed)
        return
    strata: dict[str, Any] = {"strata of z": {}, "true types": {"strata": "cell_type"}}
    modes: dict[str, dict[str, Any]] = {
        "cells": {},
        "cells, mean of the counts": {"quantity": "mean"},
        "cells, 25 draws": {"n_samples": 25},
        "cells, 25 draws, refined": {"n_samples": 25, "refine": True},
        **{
            f"means, {kind}": {"mode": "means", **given}
            for kind, given in strata.items()
            if not (one_type and given)
        },
    }
    for mode, options in modes.items():
        table = our_differential(model, is_target, among, seed=seed, **options)
        yield f"{name}: {mode}", table


def one_seed(
    scenario: str, names: Sequence[str], epochs: int | None, seed: int
) -> Iterator[dict[str, Any]]:
    """Simulate, fit, and yield a row for each method and comparison."""
    adata = simulate_treatment(SCENARIOS[scenario], seed=seed)
    is_target = (adata.obs["condition"] == "treated").to_numpy()
    models = {name: fit(name, adata, is_target, epochs, seed) for name in names}
    comparisons = [("", slice(None), adata.var["lfc"].to_numpy())]
    comparisons += [
        (FEW, among, true_change(adata, is_target, among))
        for among in few_of_each_type(adata, is_target)
    ]
    for suffix, among, lfc in comparisons:
        for method, tagged in t_tests(adata[among], is_target[among]).items():
            yield {"method": method + suffix} | judge(tagged, lfc)
        for name, model in models.items():
            tables = methods_of(name, model, is_target, seed, among, one_type=bool(suffix))
            for method, table in tables:
                tagged = from_table(table, adata.var_names)
                yield {"method": method + suffix} | judge(tagged, lfc)


def main() -> None:
    """Simulate every scenario with every seed, print a table for each."""
    made = parser(__doc__)
    made.set_defaults(seeds=3)
    models = [*CONFIGURATIONS, REFERENCE]
    made.add_argument("--models", nargs="*", choices=models, default=["separated"])
    made.add_argument("--scenarios", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS))
    options = made.parse_args()
    start(options)
    for scenario in options.scenarios:
        rows = [
            row
            for seed in range(options.seeds)
            for row in one_seed(scenario, options.models, options.epochs, seed)
        ]
        show(
            f"{scenario}: {SCENARIOS[scenario]}",
            pd.DataFrame(rows).groupby("method", sort=False).mean(),
        )


if __name__ == "__main__":
    main()
