"""Differential expression against simulated truth: scvi-tools' contrastiveVI, ours, a t-test.

    python benchmarks/differential_truth.py [--seeds 2] [--epochs N] [--scenarios NAME ...]

The counts are simulated from neither model (`pyro_contrastive.testing.simulate_treatment`: cell
types, and a treatment that changes a fifth of the genes and leaves the others unchanged). Treated
and untreated cells are compared gene by gene:

* scvi-tools and ours: ``differential_expression`` with its defaults (a change beyond delta = 0.25,
  tagged at an expected false discovery rate of 0.05); ours also with early stopping
  (`elbo_validation`), with 25 posterior draws for each cell, and as "counterfactual", where each
  treated cell is compared with itself decoded without its salient latent, tagged by the same rule.
* Welch's t-test of log-normalised counts (each cell scaled to 10,000, log1p), with the
  Benjamini-Hochberg correction at 0.05; and the same restricted to genes with a log2 fold change of
  mean normalised counts of at least delta, the closest that a t-test comes to the test of a change.

The comparison is made for all cells and (rows that end in "few of a type") for at most 30 treated
with 30 untreated cells of each cell type, averaged over types: the models have learned from all
cells but compare single cells, which vary less in a group of one type than in a group of several.

A gene is *changed* if its true log2 fold change is at least delta, which is what the models test;
power is the share of changed genes that are tagged. The t-test asks whether there is any
difference, so false discoveries are counted in two ways: "FDR" counts tagged genes that are not
changed, "FDR of any" only those whose true fold change is 0. "power at 0.05" is the power if the
threshold were set by the truth: the largest share of changed genes found with at most 5 % false
discoveries above the threshold. Prints the mean over seeds. Needs the ``parity`` extra.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from common import (
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

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.analysis import differential_statistics as statistics
from pyro_contrastive.testing import TreatmentSettings, simulate_treatment

DELTA, TARGET = 0.25, 0.05
SCENARIOS = {
    "alike": TreatmentSettings(),
    "one cell type": TreatmentSettings(n_types=1),
    "shallow": TreatmentSettings(n_background=300, n_target=300, mean_total=300.0),
    "treated less deep": TreatmentSettings(treated_depth=0.4),
    "other cell types": TreatmentSettings(type_shift=2.0),
}
EARLY = Configuration(train={"early_stopping": True})
N_FEW = 30


@dataclass(frozen=True)
class Tagged:
    """Which genes are tagged ``[genes]``, and a score to rank them by, the highest first."""

    genes: NDArray[np.bool_]
    score: NDArray[np.floating[Any]]


def from_table(table: pd.DataFrame, names: pd.Index) -> Tagged:
    """Read a table of differential expression; ties are broken by the size of the change."""
    table = table.loc[names]
    score = table["proba_de"] + 1e-6 * table["lfc_mean"].abs()
    return Tagged(table[f"is_de_fdr_{TARGET}"].to_numpy(dtype=bool), score.to_numpy())


def counterfactual(model: ContrastiveVI, is_target: NDArray[np.bool_], seed: int) -> Tagged:
    """Compare each treated cell with itself decoded without its salient latent."""
    expression = model.get_normalized_expression(
        indices=np.flatnonzero(is_target), n_samples=25, return_numpy=True, seed=seed
    )
    change = statistics.log_fold_change(
        expression["salient"], expression["background"], statistics.SMALLEST_PSEUDOCOUNT
    )
    p = statistics.probability_of_change(*statistics.beyond(change, DELTA), "three")
    return Tagged(statistics.tag_by_expected_fdr(p, TARGET), p + 1e-6 * abs(change.mean(0)))


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


@dataclass(frozen=True)
class Models:
    """The fitted models, used in all comparisons."""

    reference: Any
    ours: dict[str, ContrastiveVI]


def fit_all(
    adata: ad.AnnData, is_target: NDArray[np.bool_], epochs: int | None, seed: int
) -> Models:
    """Fit scvi-tools' model, and ours without and with early stopping."""
    reference, _ = fit_reference(adata, is_target, epochs=epochs, seed=seed)
    ours = {}
    for name, configuration in {"ours": None, "ours, early stopping": EARLY}.items():
        ours[name], _ = fit_ours(
            adata, "condition", "control", configuration=configuration, epochs=epochs, seed=seed
        )
    return Models(reference, ours)


def all_methods(
    adata: ad.AnnData,
    is_target: NDArray[np.bool_],
    models: Models,
    seed: int,
    among: NDArray[np.bool_] | None = None,
) -> Iterator[tuple[str, Tagged]]:
    """Yield the result of every method; the counterfactual only if all cells are compared."""
    chosen = slice(None) if among is None else among
    table = reference_differential(models.reference, is_target, chosen, seed=seed)
    yield REFERENCE, from_table(table, adata.var_names)
    for name, model in models.ours.items():
        for suffix, draws in (("", 1), (", 25 draws", 25)):
            table = our_differential(model, is_target, chosen, seed=seed, n_samples=draws)
            yield name + suffix, from_table(table, adata.var_names)
        if among is None:
            yield f"{name}, counterfactual", counterfactual(model, is_target, seed)
    yield from t_tests(adata[chosen], is_target[chosen]).items()


def one_seed(scenario: str, epochs: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Simulate, fit, and yield a row for each method and comparison."""
    adata = simulate_treatment(SCENARIOS[scenario], seed=seed)
    is_target = (adata.obs["condition"] == "treated").to_numpy()
    models = fit_all(adata, is_target, epochs, seed)
    for name, tagged in all_methods(adata, is_target, models, seed):
        yield {"method": name} | judge(tagged, adata.var["lfc"].to_numpy())
    for among in few_of_each_type(adata, is_target):
        lfc = true_change(adata, is_target, among)
        for name, tagged in all_methods(adata, is_target, models, seed, among):
            yield {"method": f"{name}, few of a type"} | judge(tagged, lfc)


def main() -> None:
    """Simulate every scenario with every seed, print a table for each."""
    made = parser(__doc__)
    made.set_defaults(seeds=2)
    made.add_argument("--scenarios", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS))
    options = made.parse_args()
    start(options)
    for scenario in options.scenarios:
        rows = [
            row for seed in range(options.seeds) for row in one_seed(scenario, options.epochs, seed)
        ]
        show(
            f"{scenario}: {SCENARIOS[scenario]}",
            pd.DataFrame(rows).groupby("method", sort=False).mean(),
        )


if __name__ == "__main__":
    main()
