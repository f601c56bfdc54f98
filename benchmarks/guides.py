"""What each family of posteriors buys: held-out ELBO, Pareto k, and the distance to NUTS.

    python benchmarks/guides.py [counts.h5ad] [--condition-key K] [--background B] [--seeds 2]

Preset "separated", fast schedule; the same cells are held out for all families. Every fit has a
decoder of its own, so that NUTS is run for each, with the first seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from common import parser, read_counts, show, start, summarise
from torch import Tensor

from pyro_contrastive import ContrastiveVI, LowRankGuide
from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.analysis.comparison import estimate
from pyro_contrastive.analysis.likelihood import all_log_weights
from pyro_contrastive.analysis.nuts import NutsSettings, sample_nuts
from pyro_contrastive.analysis.runs import draw_posterior
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.data import load_kang
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.guides import SHORT_NAMES

N_DRAWS = 400
GOOD_K = 0.7
FAMILIES: Mapping[str, Callable[[], ContrastiveGuide]] = dict(SHORT_NAMES) | {
    "low-rank, 8": lambda: LowRankGuide(8)
}
"""Families by name: those of the shell, and a variant."""


def weights_of(model: ContrastiveVI, batch: CellBatch) -> dict[str, float]:
    """Summarise the importance weights of draws from the guide, over cells."""
    with evaluating(model.module):
        log_weights = all_log_weights(model.module, batch, N_DRAWS).cpu().numpy()
    found = estimate(log_weights)
    relative = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    share = relative.sum(1) ** 2 / (relative**2).sum(1) / N_DRAWS
    return {
        "ELBO, stimulated": log_weights.mean(),
        "log p": float(found.iw.mean()),
        "k < .7": float((found.k < GOOD_K).mean()),
        "median k": float(np.median(found.k)),
        "sample size": float(share.mean()),
    }


def real_draws(model: ContrastiveVI, batch: CellBatch, n_draws: int) -> Tensor:
    """Draws of all latents of each cell, unconstrained: ``[draws, cells, latents]``."""
    guide = model.module.guide
    with evaluating(model.module):
        nodes = draw_posterior(model.module, batch, n_draws).nodes
    sites = [site for site in ("z", "s", "library") if site in nodes]
    values = [nodes[s]["value"].log() if guide.is_positive(s) else nodes[s]["value"] for s in sites]
    return torch.cat(values, dim=-1).double()


def distance_to_nuts(
    model: ContrastiveVI, batch: CellBatch, settings: NutsSettings
) -> dict[str, float]:
    """Compare means, widths and correlations of the guide's draws with NUTS, over cells."""
    with evaluating(model.module):
        moments = model.module.guide.marginals(batch)
    exact = sample_nuts(model.module, batch, moments, settings)
    truth = torch.cat([value.flatten(0, 1) for value in exact.values.values()], dim=-1).double()
    drawn = real_draws(model, batch, 4000)
    error = (drawn.mean(0) - truth.mean(0)) / truth.std(0)
    correlations = [
        torch.stack([torch.corrcoef(values[:, cell].T) for cell in range(len(batch))])
        for values in (drawn, truth)
    ]
    off = ~torch.eye(truth.shape[-1], dtype=torch.bool)
    rhat = torch.cat([exact.summary(site)["rhat"] for site in exact.values], dim=-1)
    return {
        "mean off": float(error.square().mean().sqrt()),
        "sd ratio": float((drawn.std(0) / truth.std(0)).median()),
        "correlation off": float(
            (correlations[0] - correlations[1])[:, off].square().mean() ** 0.5
        ),
        "correlation": float(correlations[1][:, off].square().mean() ** 0.5),
        "R-hat": float(rhat.nanquantile(0.9)),
    }


def fitted(adata: Any, family: str, options: Any, seed: int) -> tuple[ContrastiveVI, float]:
    """Fit the preset with a family; return the model and the processor seconds."""
    pyro.set_rng_seed(seed)
    model = ContrastiveVI.from_preset(adata, "separated", guide=FAMILIES[family]())
    begun = time.process_time()
    model.train(schedule="fast", max_epochs=options.epochs, seed=seed, enable_progress_bar=False)
    return model, time.process_time() - begun


def main() -> None:
    """Fit every family for every seed, and print a table per cell."""
    made = parser(__doc__, nargs="?", help="h5ad with raw counts; default: bundled Kang")
    made.add_argument("--condition-key", default="condition")
    made.add_argument("--background", default="control")
    made.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    made.add_argument("--cells", type=int, default=60, help="held-out target cells, for weights")
    made.add_argument("--nuts-cells", type=int, default=8, help="those of them for NUTS; 0: none")
    options = made.parse_args()
    start(options)
    adata = load_kang() if options.data is None else read_counts(options.data)
    ContrastiveVI.setup_anndata(
        adata, condition_key=options.condition_key, background=options.background
    )
    fitted(adata, "mean-field", options, 0)  # compiles
    rows = []
    for seed in range(options.seeds):
        for family in options.families:
            model, seconds = fitted(adata, family, options, seed)
            held_out = model.validation_indices
            of_target = held_out[
                (adata.obs[options.condition_key].astype(str) != options.background).to_numpy()[
                    held_out
                ]
            ]
            pyro.set_rng_seed(0)
            batch = model._data(None).cells(of_target[: options.cells])
            row = {"seed": seed, "family": family, "s": seconds}
            row["ELBO, held out"] = float(
                np.mean([model.get_elbo(indices=held_out, seed=i) for i in range(5)])
            )
            row |= weights_of(model, batch)
            refined = model.pareto_k(
                indices=of_target[: options.cells], n_samples=N_DRAWS, refine=True, seed=0
            )
            row["ELBO, refined"] = refined["elbo"].mean()
            row["k < .7, refined"] = (refined["k"] < GOOD_K).mean()
            if options.nuts_cells and seed == 0:  # minutes
                few = batch.take(torch.arange(options.nuts_cells))
                row |= distance_to_nuts(model, few, NutsSettings(200, 100))
            rows.append(row)
            print(f"seed {seed}", {k: v for k, v in row.items() if k != "seed"}, flush=True)
    means = summarise(rows, ["family"])
    show("Per cell, means over seeds", means[[c for c in means if not c.endswith(" sd")]])
    if options.seeds > 1:
        show("Standard deviation over seeds", means[[c for c in means if c.endswith(" sd")]])


if __name__ == "__main__":
    main()
