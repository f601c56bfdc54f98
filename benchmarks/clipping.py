"""Does clipping gradients touch fits that are well? Largest gradients of fits of four data sets.

    python benchmarks/clipping.py --data FOLDER [--seeds 0 1] [--schedules fast reference]

``FOLDER`` holds the four .h5ad files of ``benchmarks/README.md``. Every fit is made twice, with and
without clipping. Columns: the largest norm of a gradient in units of what was usual then, the
number of steps that were clipped, whether all weights are the same bits as without clipping, the
best held-out ELBO with and without, and the milliseconds that clipping takes in a step.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar

import anndata as ad
import pandas as pd
import torch
from common import read_counts

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.training import clipping, updates

DATA: dict[str, tuple[str, dict[str, str]]] = {
    "Kang": ("kang2018_ifnb_pbmc.h5ad", {"background": "control"}),
    "A549": ("scicar_a549_dex.h5ad", {"background": "control"}),
    "GBM": ("zhao2021_gbm_panobinostat.h5ad", {"background": "ctrl", "batch_key": "patient_id"}),
    "Papalexi": (
        "papalexi2021_eccite_299genes.h5ad",
        {"background": "control", "batch_key": "bio_rep"},
    ),
}
"""File of each data set, and arguments of its setup."""


class Recorded(clipping.Clipping):
    """Clips nothing if so asked, and notes all ratios and the time."""

    is_clipping = True
    ratios: ClassVar[list[float]] = []
    seconds = 0.0

    def clip(self, gradients: Any, loss: torch.Tensor, step: int) -> None:
        """As in training."""
        start = time.perf_counter()
        if self.is_clipping:
            super().clip(gradients, loss, step)
            Recorded.ratios.append(float(self._noted[-1][1]))
        Recorded.seconds += time.perf_counter() - start


def fitted(adata: ad.AnnData, schedule: str, seed: int, *, is_clipping: bool) -> ContrastiveVI:
    """Fit the preset "separated"."""
    Recorded.is_clipping, Recorded.ratios, Recorded.seconds = is_clipping, [], 0.0
    torch.manual_seed(seed)
    model = ContrastiveVI.from_preset(adata, "separated")
    epochs = {"max_epochs": 12} if schedule == "reference" else {}
    model.train(schedule=schedule, seed=seed, enable_progress_bar=False, **epochs)
    return model


def row(adata: ad.AnnData, schedule: str, seed: int) -> dict[str, Any]:
    """Fit with and without clipping, and compare."""
    model = fitted(adata, schedule, seed, is_clipping=True)
    ratios, milliseconds = Recorded.ratios, 1000 * Recorded.seconds / len(Recorded.ratios)
    without = fitted(adata, schedule, seed, is_clipping=False)
    pairs = zip(
        model.module.state_dict().values(), without.module.state_dict().values(), strict=True
    )
    elbos = [m.history["elbo_validation"].min().item() for m in (model, without)]
    return {
        "steps": len(ratios),
        "largest": max(ratios),
        "99.9 %": pd.Series(ratios).quantile(0.999),
        "clipped": sum(ratio > clipping.CLIPPED_AT for ratio in ratios),
        "same bits": all(torch.equal(a, b) for a, b in pairs),
        "ELBO": elbos[0],
        "without": elbos[1],
        "ms a step": milliseconds,
    }


def main() -> None:
    """Print a row for each fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--schedules", nargs="+", default=["fast"])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    updates.Clipping = Recorded  # type: ignore[misc]
    rows = []
    for name, (file, keys) in DATA.items():
        adata = read_counts(str(given.data / file))
        ContrastiveVI.setup_anndata(adata, condition_key="condition", **keys)
        for schedule in given.schedules:
            for seed in given.seeds:
                found = row(adata, schedule, seed)
                rows.append({"data": name, "schedule": schedule, "seed": seed} | found)
                print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format))


if __name__ == "__main__":
    main()
