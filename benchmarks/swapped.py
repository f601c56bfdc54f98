"""Do z and s swap roles? The preset "separated" on subsets, with and without LateSalient.

    python benchmarks/swapped.py counts.h5ad --background control --shared-key cell_type
        [--cells 600 600] [--genes 2000] [--seeds 8] [--steps 50] [--weights 1]

Every seed draws ``--cells`` background and target cells, and fits the preset with the fast
schedule: without ``LateSalient``, and with it at the given weights. The genes with the largest
ratio of variance to mean are kept. Prints, for each fit and then on average: best held-out negative
ELBO per pair, mixing of the condition in z (1 is best) and in s (0 is best), and the NMI of the
labels that both conditions share with clusters in z (high is best) and in s of target cells (low is
best). ``swapped`` is the share of fits in which this NMI is at least half as large in s as in z.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from common import Configuration, fit_ours, parser, show, start
from schedules import scores

from pyro_contrastive import LateSalient
from pyro_contrastive.presets import Sizes, preset_arguments

SWAPPED = 0.5


def arguments(weight: float, steps: int) -> dict[str, Any]:
    """Make the arguments of the preset, with the given weight of LateSalient."""
    made = preset_arguments("separated", Sizes(2, 10, 10))
    lasting = [p for p in made["penalties"] if not isinstance(p, LateSalient)]
    late = [LateSalient(weight, steps)] if weight else []
    return made | {"penalties": lasting + late}


def part(adata: ad.AnnData, options: argparse.Namespace, seed: int) -> ad.AnnData:
    """Draw cells of both conditions."""
    rng = np.random.default_rng(seed)
    is_background = (adata.obs[options.condition_key].astype(str) == options.background).to_numpy()
    sides = (np.flatnonzero(side) for side in (is_background, ~is_background))
    pairs = zip(sides, options.cells, strict=True)
    drawn = [rng.choice(side, min(n, len(side)), replace=False) for side, n in pairs]
    return adata[np.sort(np.concatenate(drawn))].copy()


def dispersed(adata: ad.AnnData, n_genes: int) -> ad.AnnData:
    """Keep the genes with the largest ratio of variance to mean."""
    mean = np.asarray(adata.X.mean(0)).ravel()
    variance = np.asarray(adata.X.power(2).mean(0)).ravel() - mean**2
    order = np.argsort(-variance / np.maximum(mean, 1e-9))
    return adata[:, np.sort(order[:n_genes])].copy()


def main() -> None:
    """Run and print."""
    made = parser(__doc__, help="h5ad with raw counts")
    made.add_argument("--condition-key", default="condition")
    made.add_argument("--background", default="control")
    made.add_argument("--shared-key", required=True, help="label that both conditions share")
    made.add_argument("--cells", type=int, nargs=2, default=[600, 600])
    made.add_argument("--genes", type=int, default=2_000)
    made.add_argument("--steps", type=int, default=50, help="of LateSalient")
    made.add_argument("--weights", type=float, nargs="+", default=[1.0], help="of LateSalient")
    made.set_defaults(within_key=None, seeds=8)
    options = made.parse_args()
    start(options)
    whole = dispersed(ad.read_h5ad(options.data), options.genes)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        cells = part(whole, options, seed)
        for weight in (0.0, *options.weights):
            setting = Configuration(partial(arguments, weight, options.steps), {"schedule": "fast"})
            names = (options.condition_key, options.background)
            model, _ = fit_ours(cells, *names, configuration=setting, seed=seed)
            row = {"LateSalient": weight, "seed": seed, "-ELBO": model.history["elbo_validation"]}
            row["-ELBO"] = float(row["-ELBO"].min().item())
            row |= scores(model, cells, options)
            row["swapped"] = float(row["shared in s NMI"] >= SWAPPED * row["shared in z NMI"])
            print({name: round(float(value), 3) for name, value in row.items()}, flush=True)
            rows.append(row)
    table = pd.DataFrame(rows).groupby("LateSalient").mean().drop(columns="seed")
    show(f"mean over {options.seeds} subsets of {options.cells} cells", table)


if __name__ == "__main__":
    main()
