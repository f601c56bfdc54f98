"""The test of means against simulated truth, with different strata, beside a t-test.

    python benchmarks/means_truth.py [--seeds 2] [--scenarios NAME ...]

Counts are simulated from neither model (:func:`pyro_contrastive.testing.simulate_treatment`), in
the scenarios of ``differential_truth.py`` and in three where the treatment changes nothing; and,
in the scenarios "paths: ...", by the second simulator of ``simulators.py``, in which cells also
vary continuously. Our model (the preset "separated", fast schedule, stopped early) is fitted, and
treated cells are compared with controls by ``differential_expression(mode="means")`` with strata:
none, the true cell types, and clusters of the background latent. Beside it Welch's t-test of
log-normalised counts.
Prints, as means over seeds, the false discovery rate at a target of 0.05 (genes whose true change
is 0), the share found of the genes that change by at least 0.25 (log2), and the share of p-values
below 0.05 among unchanged genes. In the three null scenarios any discovery is false.
"""

from __future__ import annotations

import argparse

import anndata as ad
import numpy as np
import pandas as pd
import pyro
from common import show, start
from differential_truth import SCENARIOS
from numpy.typing import NDArray
from scipy import stats
from simulators import PathSettings, simulate_paths

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.testing import TreatmentSettings, simulate_treatment

TARGET, CHANGED = 0.05, 0.25
NULLS = {
    "null": TreatmentSettings(share_affected=0.0),
    "null, less deep": TreatmentSettings(share_affected=0.0, treated_depth=0.4),
    "null, other cell types": TreatmentSettings(share_affected=0.0, type_shift=2.0),
}
PATHS = {
    "paths: alike": PathSettings(),
    "paths: fewer counts": PathSettings(mean_total=500.0),
    "paths: treated less deep": PathSettings(treated_depth=0.4),
    "paths: other cell types": PathSettings(type_shift=2.0),
    "paths: half respond": PathSettings(responding=0.5),
    "paths: null, other cell types": PathSettings(type_shift=2.0, share_affected=0.0),
    "paths: other places": PathSettings(path_shift=0.5),
}
STRATA: dict[str, str | int] = {"none": 1, "true types": "cell_type", "z, 8": 8, "z, 20": 20}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--scenarios", nargs="*", default=[*SCENARIOS, *NULLS, *PATHS])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def t_test(adata: ad.AnnData) -> NDArray[np.float64]:
    """P-values of Welch's t-test of log-normalised counts."""
    x = adata.X.toarray()
    x = np.log1p(1e4 * x / x.sum(1, keepdims=True))
    side = (adata.obs["condition"] == "treated").to_numpy()
    return np.nan_to_num(stats.ttest_ind(x[side], x[~side], equal_var=False).pvalue, nan=1.0)


def rates(p: NDArray[np.float64], lfc: NDArray[np.float64]) -> dict[str, float]:
    """Judge p-values by the true log2 fold changes; genes without one are not found."""
    tested = np.isfinite(p)
    found = np.zeros(len(p), dtype=bool)
    found[tested] = stats.false_discovery_control(p[tested]) <= TARGET
    changed = np.abs(lfc) >= CHANGED
    return {
        "FDR": (found & (lfc == 0)).sum() / max(found.sum(), 1),
        "power": found[changed].mean() if changed.any() else np.nan,
        "found": float(found.sum()),
        "p < .05, unchanged": (p[tested & (lfc == 0)] < TARGET).mean(),
    }


def simulated(name: str, seed: int) -> ad.AnnData:
    """Draw the cells of a scenario."""
    if name in PATHS:
        return simulate_paths(PATHS[name], seed=seed)
    return simulate_treatment((SCENARIOS | NULLS)[name], seed=seed)


def main() -> None:
    """Simulate, fit, test, print."""
    options = arguments()
    start(options)
    rows = []
    for name in options.scenarios:
        for seed in range(options.seeds):
            adata = simulated(name, seed)
            lfc = adata.var["lfc"].to_numpy()
            ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
            pyro.set_rng_seed(seed)
            model = ContrastiveVI.from_preset(adata, "separated")
            model.train(schedule="fast", early_stopping=True, seed=seed, enable_progress_bar=False)
            where = {"scenario": name, "seed": seed}
            rows.append(where | {"strata": "t-test"} | rates(t_test(adata), lfc))
            for strata, given in STRATA.items():
                table = model.differential_expression(
                    mode="means", strata=given, seed=seed, silent=True
                )
                p = table["p_value"].loc[adata.var_names].to_numpy()
                rows.append(where | {"strata": strata} | rates(p, lfc))
    table = pd.DataFrame(rows).groupby(["scenario", "strata"], sort=False).mean()
    show("Means over seeds", table.drop(columns="seed"))


if __name__ == "__main__":
    main()
