"""How far the encoders' posterior is from the best one of each cell: before and after.

    python benchmarks/posterior_gap.py counts.h5ad [--background control] [--seeds 0 1]
        [--reference-best 1854.0 1849.8]

"before" are encoders of one hidden layer that see all counts in training, "after" what the fast
schedule and the preset "separated" do now: encoders of two hidden layers, and ``molecule_dropout``.
"fast" is the default model, without penalties and with encoders of one hidden layer, of which only
the latter changes. Every seed makes one split, the same for all settings.

The gap is the ELBO of the refined posterior (:func:`pyro_contrastive.analysis.refinement.refine`,
the decoder fixed) minus that of the encoders, in nats per cell, means over at most 100 cells of
each population and 200 draws; of held-out cells and of training cells. "-ELBO" is that of all
held-out cells per pair, at the end; "s" are processor seconds of the whole run, and with
``--reference-best``, the best held-out negative ELBO of scvi-tools with each seed (see
``data_sets.py``), also those until ours is as good. "mixed" says how well the latents of all cells
mix the conditions: 1 is best for z, 0 for s. Without data, the bundled cells are taken.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import read_counts, start
from curves import Data, Setting, fit_ours
from data_sets import SEPARATED
from schedules import latents

from pyro_contrastive.analysis.likelihood import all_log_weights
from pyro_contrastive.analysis.refined_posterior import RefinedGuide
from pyro_contrastive.analysis.refinement import refine
from pyro_contrastive.analysis.separation import score_latents
from pyro_contrastive.data import load_kang
from pyro_contrastive.training.splits import Population
from pyro_contrastive.vae import ContrastiveVAE

SEEN = {"molecule_dropout": 0.0}
SETTINGS = {
    "fast, before": Setting(plan=SEEN),
    "fast, after": Setting(),
    "separated, before": Setting(penalties=SEPARATED["penalties"], plan=SEEN),
    "separated, after": Setting(**SEPARATED),
}
N_CELLS, N_DRAWS, AT_A_TIME = 100, 200, 50


def gaps(vae: ContrastiveVAE, data: Data, cells: Population) -> tuple[float, float]:
    """Mean gap of background and of target cells."""
    found = []
    for indices in (cells.background, cells.target):
        some = np.sort(np.random.default_rng(0).permutation(indices)[:N_CELLS])
        parts = []
        for few in np.array_split(some, -(-len(some) // AT_A_TIME)):
            batch = data.cells.cells(few)
            refined = RefinedGuide(vae.guide, refine(vae, batch))
            elbos = []
            for guide in (None, refined):
                torch.manual_seed(0)
                with torch.no_grad():
                    elbos.append(all_log_weights(vae, batch, N_DRAWS, guide).mean(-1))
            parts.append(elbos[1] - elbos[0])
        found.append(float(torch.cat(parts).mean()))
    return found[0], found[1]


def measured(data: Data, setting: Setting, options: argparse.Namespace, i: int) -> dict[str, Any]:
    """Fit one setting with the seed at position `i`, and measure it."""
    model, clock = fit_ours(data, setting, options.epochs, options.seeds[i])
    curve = np.array(clock.curve)
    row: dict[str, Any] = {"-ELBO": data_elbo(model.module.eval(), data), "s": curve[-1, 0]}
    if options.reference_best:
        reached = curve[curve[:, 1] <= options.reference_best[i], 0]
        row["s to the reference's best"] = reached[0] if len(reached) else np.nan
    for name, cells in (("held out", data.split.validation), ("training", data.split.train)):
        of = gaps(model.module, data, cells)
        row |= {f"gap, {name}: background": of[0], f"gap, {name}: target": of[1]}
    z, s = latents(model)
    condition = data.adata.obs[options.condition_key].astype(str)
    table = score_latents(z, s, condition, background_category=options.background)
    values = table.set_index(["latent", "of", "measure"])["value"]
    row["mixed in z"] = values["background", "condition", "mixing"]
    row["mixed in s"] = values["salient", "condition", "mixing"]
    return row


def data_elbo(vae: ContrastiveVAE, data: Data) -> float:
    """Negative ELBO per pair of held-out cells."""
    parts = data.held_out(vae)
    return sum(parts[name] for name in ("reconstruction_loss", "kl_z", "kl_s"))


def main() -> None:
    """Fit every setting with every seed; print a line for each, and the means."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("data", nargs="?", help="h5ad with raw counts; default: the bundled cells")
    made.add_argument("--condition-key", default="condition")
    made.add_argument("--background", default="control")
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    made.add_argument("--reference-best", type=float, nargs="+", default=[])
    made.add_argument("--epochs", type=int, help="epochs of every fit; default: the schedule's")
    made.add_argument("--threads", type=int, default=1)
    options = made.parse_args()
    if options.reference_best and len(options.reference_best) != len(options.seeds):
        made.error("--reference-best takes one number for each seed")
    start(options)
    adata = load_kang() if options.data is None else read_counts(options.data)
    torch.set_num_threads(options.threads)
    rows = []
    for i, seed in enumerate(options.seeds):
        data = Data.of(adata, options, seed)
        for name in options.settings:
            row = {"setting": name, "seed": seed} | measured(data, SETTINGS[name], options, i)
            rows.append(row)
            shown = {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}
            print(shown, flush=True)
    table = pd.DataFrame(rows).drop(columns="seed").groupby("setting", sort=False).mean()
    print(table.T.round(2).to_string())


if __name__ == "__main__":
    main()
