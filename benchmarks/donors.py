"""False discoveries and power with donors as the unit, and with cells as replicates.

    python benchmarks/donors.py [--seeds 3] [--data DIR] [--without-pydeseq2]

*Simulated* (:func:`pyro_contrastive.testing.simulate_treatment`): 250 cells per donor of four cell
types, whose frequencies differ between conditions (type_shift 1), treated cells .6 as deep; every
gene differs between donors (standard deviation .3 of the log), and in paired designs also between
the two samples of a donor (.1). The treatment changes nothing, or a fifth of 1,000 genes. Tests are
within the true cell types, by ``compare_means``, which is ``differential_expression(mode="means")``
for given strata: with cells as replicates; with donors as the unit, by the default test and by
PyDESeq2; and, for comparison, by Welch's t-test (or a paired t-test) of the donors' log rates.
Printed are means over seeds: the false discovery rate at a target of .05 (genes whose true change
is 0), the genes found, the share found of those that change by at least .25 (log2), and the shares
of p-values below .05 and .005 among unchanged genes, which should be .05 and .005.

*Real* (with ``--data``, the folder of ``zhao2021_gbm_panobinostat.h5ad`` and
``kang2018_ifnb_pbmc.h5ad``): conditions are made up for donors of untreated cells, so that whatever
is found is false. GBM: all ten divisions of five patients into two and three. Kang: control cells
dealt at random to 6 or 10 made-up donors, half of them "treated", within cell types, ten times; the
donors are then alike. And what is found of the true treatment of the five GBM patients.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from common import show, start
from numpy.typing import NDArray
from scipy import stats

from pyro_contrastive.analysis.means.compare import compare_means
from pyro_contrastive.analysis.means.donor_rates import donor_rates
from pyro_contrastive.analysis.means.donors import Donors
from pyro_contrastive.analysis.means.group_sums import donor_sums
from pyro_contrastive.analysis.means.settings import MeansSettings
from pyro_contrastive.testing import TreatmentSettings, simulate_treatment

TARGET, CHANGED = 0.05, 0.25
CELLS, OURS, PYDESEQ2, PLAIN = "cells", "donors", "donors, PyDESeq2", "donors, plain t-test"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--without-pydeseq2", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def codes(values: object) -> NDArray[np.int64]:
    """Return values as codes from 0."""
    return np.unique(np.asarray(values, dtype=str), return_inverse=True)[1].astype(np.int64)


def p_values(
    x: object, side: NDArray[np.bool_], donor: object, strata: object, tests: list[str]
) -> dict[str, NDArray[np.float64]]:
    """P-values of all genes by each test; NaN where a gene is not tested."""
    sizes = np.asarray(x.sum(1), dtype=float).ravel()
    donor, strata = codes(donor), codes(strata)
    names = pd.Index(range(strata.max() + 1))
    donors = Donors(donor, pd.Index(range(donor.max() + 1)), "donor")
    given = {
        CELLS: (MeansSettings(), None),
        OURS: (MeansSettings(), donors),
        PYDESEQ2: (MeansSettings(donor_test="pydeseq2"), donors),
    }
    found = {}
    for name in tests:
        if name in given:
            settings, unit = given[name]
            table = compare_means(x, sizes, strata, side, names, settings, unit)
            found[name] = table["p_value"].to_numpy()
    sums = donor_sums(x, sizes / sizes.mean(), strata, side, donor)
    rates = donor_rates(sums.comparable(5))
    treated, control = (rates.value[rates.side == c] for c in (1, 0))
    paired = np.array_equal(rates.donor[rates.side == 1], rates.donor[rates.side == 0])
    compare = stats.ttest_rel if paired else lambda a, b: stats.ttest_ind(a, b, equal_var=False)
    found[PLAIN] = np.where(rates.observed.sum(0) >= 10, compare(treated, control).pvalue, np.nan)  # noqa: PLR2004
    return found


def judged(p: NDArray[np.float64], lfc: NDArray[np.float64]) -> dict[str, float]:
    """Judge p-values by the true log2 fold changes."""
    tested = np.isfinite(p)
    found = np.zeros(len(p), dtype=bool)
    found[tested] = stats.false_discovery_control(p[tested]) <= TARGET
    changed = np.abs(lfc) >= CHANGED
    return {
        "FDR": (found & (lfc == 0)).sum() / max(found.sum(), 1),
        "found": float(found.sum()),
        "most found": float(found.sum()),
        "power": found[changed].mean() if changed.any() else np.nan,
        "p < .05": (p[tested & (lfc == 0)] < 0.05).mean(),  # noqa: PLR2004
        "p < .005": (p[tested & (lfc == 0)] < 0.005).mean(),  # noqa: PLR2004
    }


def simulated(tests: list[str], n_seeds: int) -> pd.DataFrame:
    """Judge the tests on simulated donors."""
    rows = []
    for share, paired, n_donors in itertools.product((0.0, 0.2), (False, True), (2, 3, 5)):
        for seed in range(n_seeds):
            settings = TreatmentSettings(
                n_background=250 * n_donors,
                n_target=250 * n_donors,
                n_genes=1000,
                type_shift=1.0,
                treated_depth=0.6,
                share_affected=share,
                n_donors=n_donors,
                paired=paired,
            )
            adata = simulate_treatment(settings, seed=seed)
            side = (adata.obs["condition"] == "treated").to_numpy()
            where = {
                "response": "a fifth" if share else "none",
                "design": "paired" if paired else "nested",
                "donors a side": n_donors,
            }
            found = p_values(adata.X, side, adata.obs["donor"], adata.obs["cell_type"], tests)
            lfc = adata.var["lfc"].to_numpy()
            rows += [where | {"unit": name} | judged(p, lfc) for name, p in found.items()]
    return summary(rows, ["response", "design", "donors a side", "unit"])


def summary(rows: list[dict[str, object]], by: list[str]) -> pd.DataFrame:
    """Means over runs, but for the most that was found in one."""
    groups = pd.DataFrame(rows).groupby(by, sort=False)
    return groups.mean().assign(**{"most found": groups["most found"].max()})


def nulls(folder: Path, tests: list[str]) -> pd.DataFrame:
    """Judge the tests on untreated cells of real data, with conditions made up for donors."""
    rows = []
    gbm = ad.read_h5ad(folder / "zhao2021_gbm_panobinostat.h5ad")
    gbm = gbm[gbm.obs["condition"] == "ctrl"]
    patient = gbm.obs["patient_id"].astype(str).to_numpy()
    nothing = np.zeros(gbm.n_vars)
    for chosen in itertools.combinations(np.unique(patient), 2):
        found = p_values(gbm.X, np.isin(patient, chosen), patient, np.zeros(len(patient)), tests)
        where = {"data": "GBM controls, 2 and 3 patients"}
        rows += [where | {"unit": name} | judged(p, nothing) for name, p in found.items()]
    kang = ad.read_h5ad(folder / "kang2018_ifnb_pbmc.h5ad")
    kang = kang[kang.obs["condition"] == "control"]
    nothing = np.zeros(kang.n_vars)
    for n_donors, seed in itertools.product((6, 10), range(10)):
        donor = np.random.default_rng(seed).integers(0, n_donors, kang.n_obs)
        side = donor < n_donors // 2
        found = p_values(kang.X, side, donor, kang.obs["cell_type_coarse"], tests)
        where = {"data": f"Kang controls, dealt to {n_donors} donors"}
        rows += [where | {"unit": name} | judged(p, nothing) for name, p in found.items()]
    return summary(rows, ["data", "unit"]).drop(columns="power")


def panobinostat(folder: Path, tests: list[str]) -> pd.Series:
    """Genes found of a treatment of five patients."""
    gbm = ad.read_h5ad(folder / "zhao2021_gbm_panobinostat.h5ad")
    treated = (gbm.obs["condition"] != "ctrl").to_numpy()
    found = p_values(gbm.X, treated, gbm.obs["patient_id"], np.zeros(gbm.n_obs), tests)
    return pd.Series({n: judged(p, np.ones(len(p)))["found"] for n, p in found.items()})


def main() -> None:
    """Simulate, test, print."""
    options = arguments()
    start(options)
    logging.disable(logging.WARNING)  # donors left out
    tests = [CELLS, OURS] + [PYDESEQ2] * (not options.without_pydeseq2)
    show(f"Simulated, {options.seeds} seeds", simulated(tests, options.seeds))
    if options.data is not None:
        show("Real untreated cells, made-up conditions", nulls(options.data, tests))
        show("GBM, panobinostat, 300 genes: found", panobinostat(options.data, tests).to_frame("n"))


if __name__ == "__main__":
    main()
