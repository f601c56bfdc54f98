"""How far the effects of the model are from those of the counts: interferon on blood cells.

    python benchmarks/kang_effects.py [--seeds 2] [--data FULL.h5ad]

Fits the preset "separated" with several likelihoods. For every gene that is seen in a tenth of the
cells, compares the log2 fold change that the model gives with that of plain pseudobulk (the mean
count per library of treated cells over that of untreated ones), over all cells and within cell
types of at least 50 cells of either side: slope through 0, correlation and root mean square
difference. Effects are of the mean of the counts (``quantity="mean"``) and of the decoder's scale,
with and without refinement; of a group, they are the log2 of the mean expression over that of the
same cells without the salient latent. *cells*: the mean over cells of each cell's own effect.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from common import read_counts, show, start
from numpy.typing import NDArray

import pyro_contrastive
from pyro_contrastive import ContrastiveVI
from pyro_contrastive.data import load_kang

Array = NDArray[np.float64]
LIKELIHOODS = {"ZINB": "ZeroInflatedNegativeBinomial", "NB": "NegativeBinomial"}
SEEN, FEWEST_CELLS = 0.1, 50
KEY, TYPE = "condition", "cell_type_coarse"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--seeds", type=int, default=2)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--data", help="the full data of Kang et al.; default: the bundled cells")
    made.add_argument("--likelihoods", nargs="*", default=list(LIKELIHOODS), choices=LIKELIHOODS)
    return made.parse_args()


def pseudobulk(adata: ad.AnnData, cells: NDArray[np.bool_]) -> Array:
    """Log2 fold change of the mean count per library, ``[genes]``; NaN where a mean is 0."""
    treated = (adata.obs[KEY] == "stimulated").to_numpy()
    sizes = np.asarray(adata.X.sum(1)).ravel()
    shares = [
        np.asarray(adata.X[cells & side].multiply(1 / sizes[cells & side][:, None]).mean(0)).ravel()
        for side in (treated, ~treated)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log2(shares[0] / shares[1])
    return np.where(np.isfinite(change), change, np.nan)


def agreement(model: Array, counts: Array, seen: NDArray[np.bool_]) -> dict[str, float]:
    """Compare two effects of the genes that are seen."""
    used = seen & np.isfinite(counts)
    x, y = counts[used], model[used]
    return {
        "slope": float((x @ y) / (x @ x)),
        "r": float(np.corrcoef(x, y)[0, 1]),
        "RMSE": float(np.sqrt(np.mean((x - y) ** 2))),
        "genes": int(used.sum()),
    }


def effects(model: ContrastiveVI, seed: int) -> Iterator[tuple[str, dict[str, Array], Array]]:
    """Yield how effects are asked for, expression with and without s, and effects by cell."""
    treated = np.flatnonzero(model.adata.obs[KEY] == "stimulated")
    asked: dict[str, Any] = {"indices": treated, "n_samples": 10, "seed": seed, "silent": True}
    for quantity in ("mean", "scale"):
        for refine in (False, True):
            found = model.get_normalized_expression(
                quantity=quantity, refine=refine, return_numpy=True, return_mean=True, **asked
            )
            by_cell = np.log2(found["salient"] / found["background"])
            yield f"{quantity}{', refined' if refine else ''}", found, by_cell


def main() -> None:
    """Fit, compare, print."""
    options = arguments()
    start(options)
    adata = read_counts(options.data) if options.data else load_kang()
    treated = (adata.obs[KEY] == "stimulated").to_numpy()
    seen = np.asarray((adata.X > 0).mean(0)).ravel() >= SEEN
    types = adata.obs[TYPE].astype(str).to_numpy()
    groups = {"all cells": np.ones(adata.n_obs, dtype=bool)}
    for name in np.unique(types):
        own = types == name
        if min((own & treated).sum(), (own & ~treated).sum()) >= FEWEST_CELLS:
            groups[name] = own
    rows = []
    for name in options.likelihoods:
        for seed in range(options.seeds):
            pyro_contrastive.settings.seed = seed
            ContrastiveVI.setup_anndata(adata, condition_key=KEY, background="control")
            part = getattr(pyro_contrastive, LIKELIHOODS[name])()
            model = ContrastiveVI.from_preset(adata, "separated", likelihood=part)
            model.train(schedule="fast", seed=seed, enable_progress_bar=False)
            for asked, found, by_cell in effects(model, seed):
                for group, cells in groups.items():
                    counts, own = pseudobulk(adata, cells), cells[treated]
                    means = {k: found[k][own].mean(0) for k in ("salient", "background")}
                    of_group = np.log2(means["salient"] / means["background"])
                    row = {"likelihood": name, "effect": asked, "group": group}
                    rows.append(row | {"of": "group"} | agreement(of_group, counts, seen))
                    of_cells = by_cell[own].mean(0)
                    rows.append(row | {"of": "cells"} | agreement(of_cells, counts, seen))
    table = pd.DataFrame(rows).groupby(["likelihood", "effect", "of", "group"], sort=False).mean()
    show("Effects of the model against pseudobulk, means over seeds", table)


if __name__ == "__main__":
    main()
