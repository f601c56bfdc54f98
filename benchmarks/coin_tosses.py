"""What a fit finds where there is nothing to find, and what it finds where there is something.

    python benchmarks/coin_tosses.py [--data FOLDER] [--seeds 3] [--shuffles 3]

Coin tosses: untreated cells whose condition is decided by a coin (bundled Kang controls; GBM
controls of Zhao et al. 2021), and simulated cells whose treatment changes no gene. Real responses:
bundled Kang (interferon beta) and, with ``--data``, GBM (panobinostat), A549 (dexamethasone) and
Papalexi et al. 2021 (25 knock-outs). Each is fitted as in the README, and asked for

* the share of 95 % intervals of the treatment effect that exclude 0, of at most 60 treated cells
  that did not train and 300 genes (by default: refined), and the same of cells that trained;
* the genes that ``differential_expression(mode="means")`` finds at a false discovery rate of 5 %;
* the first row of ``diagnose()``, and the verdict of ``null_check()``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from common import read_counts, show, start
from numpy.typing import NDArray

import pyro_contrastive
from pyro_contrastive import ContrastiveVI
from pyro_contrastive.data import load_kang
from pyro_contrastive.testing import TreatmentSettings, simulate_treatment

FILES = {
    "GBM": ("zhao2021_gbm_panobinostat.h5ad", "ctrl"),
    "A549": ("scicar_a549_dex.h5ad", "control"),
    "Papalexi": ("papalexi2021_eccite_299genes.h5ad", "control"),
}
N_CELLS, N_GENES = 60, 300
HALF = 0.5


def arguments() -> argparse.Namespace:
    """Read the command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--first-seed", type=int, default=0)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--data", type=Path, help="folder with the files of the real data sets")
    made.add_argument("--shuffles", type=int, default=3)
    made.add_argument("--only", nargs="*", help="names of data sets; default: all")
    return made.parse_args()


def real(name: str, folder: Path | None) -> tuple[ad.AnnData, str]:
    """Return a data set with its response, and the name of its background."""
    if name == "Kang":
        return load_kang(), "control"
    if folder is None:
        raise SystemExit(f"{name}: give --data")
    file, background = FILES[name]
    return read_counts(str(folder / file)), background


def coin(name: str, folder: Path | None, seed: int) -> tuple[ad.AnnData, str]:
    """Return untreated cells whose condition a coin decides."""
    if name == "simulated":
        return simulate_treatment(TreatmentSettings(share_affected=0.0), seed=seed), "control"
    adata, background = real(name, folder)
    adata = adata[(adata.obs["condition"].astype(str) == background).to_numpy()].copy()
    heads = np.random.default_rng(seed).random(adata.n_obs) < HALF
    adata.obs["condition"] = np.where(heads, "control", "treated")
    return adata, "control"


def share_excluding(model: ContrastiveVI, cells: NDArray[np.int64], seed: int) -> float:
    """Share of the intervals of some treated cells and genes that exclude 0."""
    rng = np.random.default_rng(seed)
    condition = model.adata.obs["condition"].astype(str).to_numpy()[cells]
    treated = cells[condition != model.setup.background]
    some = np.sort(rng.permutation(treated)[:N_CELLS])
    genes = rng.permutation(model.genes)[:N_GENES].tolist()
    effect = model.get_treatment_effect(indices=some, gene_list=genes, seed=seed, silent=True)
    return float(((effect["lower"] > 0) | (effect["upper"] < 0)).to_numpy().mean())


def found_in(adata: ad.AnnData, background: str, seed: int, n_shuffles: int) -> dict[str, Any]:
    """Fit as in the README, and ask everything."""
    pyro_contrastive.settings.seed = seed
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background=background)
    model = ContrastiveVI.from_preset(adata, "separated")
    began = time.perf_counter()
    result = model.train(schedule="fast", seed=seed, enable_progress_bar=False)
    seconds = time.perf_counter() - began
    elbo = model.history["elbo_validation"].iloc[:, 0]
    genes = model.differential_expression(mode="means", seed=seed)
    table = model.diagnose(seed=seed, silent=True)
    check = model.null_check(n_shuffles, seed=seed, silent=True)
    return {
        "epochs": f"{result.best_epoch} of {result.n_epochs}",
        "seconds": round(seconds),
        "held-out -ELBO": round(float(elbo[result.best_epoch]), 1),
        "last epoch": round(float(elbo.iloc[-1]), 1),
        "exclude 0": round(share_excluding(model, model.held_out_indices, seed), 3),
        "trained cells": round(share_excluding(model, model.train_indices, seed), 3),
        "genes": int(genes["is_de_fdr_0.05"].sum()),
        "nats": round(float(table.loc["use of the salient latent", "value"]), 2),
        "diagnose": table.loc["salient map", "reading"].split(".")[0],
        "null_check": check.answer,
        "null genes": int(check.table.loc["genes", "null_max"]),
        "null intervals": round(float(check.table.loc["intervals", "null_max"]), 3),
    }


def main() -> None:
    """Print the table, a row as soon as it is there."""
    options = arguments()
    start(options)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs = [(f"{n}, coin", n, seed) for n in ("Kang", "GBM", "simulated") for seed in seeds]
    runs += [(n, n, 0) for n in ("Kang", *FILES)]
    rows = []
    for label, name, seed in runs:
        is_missing = options.data is None and name in FILES
        if is_missing or (options.only and label not in options.only):
            continue
        is_coin = label.endswith("coin")
        data = coin(name, options.data, seed) if is_coin else real(name, options.data)
        rows.append({"data": label, "seed": seed} | found_in(*data, seed, options.shuffles))
        print(rows[-1], flush=True)
    pd.set_option("display.width", 300, "display.max_columns", 30)
    show("Coin tosses and real responses", pd.DataFrame(rows))


if __name__ == "__main__":
    main()
