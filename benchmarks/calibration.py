"""Whether intervals cover the truth: with the guide's posteriors, and with refined ones.

    python benchmarks/calibration.py [--only ranks model other coin] [--seeds 3] [--nuts 40]

* ``ranks``: simulation-based calibration. The bundled Kang cells are fitted once per seed (preset
  "separated", fast schedule, stopped early); cells are simulated from the model, and what made them
  is ranked among posterior draws: z, s, the log-likelihood, and expression and treatment effect of
  some genes. Share of the quantities whose ranks are uniform, and mean ``spread`` (above 1: the
  posterior is too narrow). With ``--nuts N`` also by NUTS, on N cells and for the first seed.
* ``model``: coverage of 90 % intervals of expression and of treatment effects, over all genes, in
  cells simulated from these models. They did not train, and the decoder is the truth.
* ``other``: the same in held-out cells of counts simulated from other models, of which expression
  and effects are known and the decoder is learned. Also the root mean square of the error of the
  posterior mean, and the mean half width of intervals: of log2 expression, and of effects.
* ``coin``: Kang control cells, a random half of which is called treated. There is no effect. Share
  of 95 % intervals of it that exclude 0, in held-out "treated" cells and over all genes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from common import Configuration, fit_ours, show, start
from numpy.typing import NDArray
from refinement import STOPPED

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.data import load_kang
from pyro_contrastive.methods.effects import PSEUDOCOUNT
from pyro_contrastive.testing import (
    SimulationSettings,
    TreatmentSettings,
    simulate,
    simulate_from,
    simulate_treatment,
)

PARTS = ("ranks", "model", "other", "coin")
GENES = ["ISG15", "IFI6", "CXCL10", "CCL8", "FTH1"]
POSTERIORS = {"guide": False, "refined": True}
N_DRAWS = 199
DEFAULT = Configuration(train={"schedule": "fast", "train_size": 0.8, "early_stopping": True})


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--simulations", type=int, default=400)
    parser.add_argument("--cells", type=int, default=100, help="whose intervals are looked at")
    parser.add_argument("--nuts", type=int, default=0, help="simulated cells for NUTS")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def kang() -> ad.AnnData:
    """Load the bundled cells with their totals as size factors, which simulated cells keep."""
    adata = load_kang()
    adata.obs["total"] = np.asarray(adata.X.sum(1)).ravel()
    return adata


def fit_kang(seed: int) -> ContrastiveVI:
    """Fit them."""
    return fit_ours(
        kang(), "condition", "control", size_factor_key="total", configuration=STOPPED, seed=seed
    )[0]


def ranks(model: ContrastiveVI, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rank what made simulated cells, by kind of quantity."""
    rows = []
    methods = {"guide": options.simulations, "refined": options.simulations}
    if seed == 0 and options.nuts:
        methods["nuts"] = options.nuts
    for method, n in methods.items():
        found = model.simulation_based_calibration(
            indices=model.validation_indices,
            n_simulations=n,
            gene_list=GENES,
            method=method,
            seed=seed,
            silent=True,
        )
        table = found.table
        kinds = table.index.str.replace(r"\d+$| o[fn] .*", "", regex=True)
        for kind, some in table.groupby(kinds, sort=False):
            rows.append(
                {
                    "posterior": method,
                    "of": kind,
                    "simulated": n,
                    "uniform": some["uniform"].mean(),
                    "smallest p": some["p_adjusted"].min(),
                    "spread": some["spread"].mean(),
                    "largest shift": some["shift"].abs().max(),
                }
            )
    return rows


def coverage(
    model: ContrastiveVI,
    adata: ad.AnnData | None,
    cells: NDArray[np.int64],
    scale: NDArray[np.float32],
    true_effect: NDArray[np.float32],
) -> list[dict[str, Any]]:
    """Compare intervals of target cells with their true expression and effects."""
    true_expression = np.log2(scale + PSEUDOCOUNT)
    rows = []
    for name, refine in POSTERIORS.items():
        draws = model.get_normalized_expression(
            adata, cells, n_samples=N_DRAWS, return_mean=False, refine=refine, seed=0, silent=True
        )["salient"]
        draws = np.log2(draws + PSEUDOCOUNT)
        expression = {"mean": draws.mean(0)}
        tails = np.quantile(draws, [0.05, 0.95], axis=0, method="weibull")
        expression["lower"], expression["upper"] = tails
        effect = model.get_treatment_effect(
            adata, cells, n_samples=N_DRAWS, interval=0.9, refine=refine, seed=0, silent=True
        )
        for what, found, true in (
            ("expression", expression, true_expression),
            ("effect", {k: v.to_numpy() for k, v in effect.items()}, true_effect),
        ):
            covered = (found["lower"] <= true) & (true <= found["upper"])
            rows.append(
                {
                    "of": what,
                    "posterior": name,
                    "covered": covered.mean(),
                    "rms error": np.sqrt(((found["mean"] - true) ** 2).mean()),
                    "half width": (found["upper"] - found["lower"]).mean() / 2,
                }
            )
    return rows


def of_itself(model: ContrastiveVI, seed: int, n_cells: int) -> list[dict[str, Any]]:
    """Coverage in cells simulated from a model."""
    some = targets(model)[:n_cells]
    made = simulate_from(model, some, seed=seed)
    return coverage(model, made, np.arange(len(some)), made.layers["scale"], made.layers["effect"])


def targets(model: ContrastiveVI) -> NDArray[np.int64]:
    """Return the held-out target cells."""
    held_out = np.asarray(model.validation_indices)
    return held_out[(model.adata.obs["condition"] != "control").to_numpy()[held_out]]


def other_models(seed: int) -> Iterator[tuple[str, ad.AnnData, dict[str, int]]]:
    """Simulate counts of which expression with and without the treatment is known."""
    for name, n in (("log-linear", 300), ("log-linear, 2,000 cells", 1000)):
        adata = simulate(SimulationSettings(n, n, 100), seed=seed)
        yield name, adata, {"n_background_latent": 3, "n_salient_latent": 2}
    for name, n in (("cell types, 1,000 cells", 500), ("cell types, 4,000 cells", 2000)):
        adata = simulate_treatment(TreatmentSettings(n, n, 200, response_sd=0.5), seed=seed)
        yield name, adata, {"n_background_latent": 5, "n_salient_latent": 3}


def of_others(seed: int, n_cells: int) -> list[dict[str, Any]]:
    """Coverage in held-out cells of other models."""
    rows = []
    for name, adata, sizes in other_models(seed):
        configuration = Configuration(lambda sizes=sizes: {"n_hidden": 64} | sizes, DEFAULT.train)
        model, _ = fit_ours(adata, "condition", "control", configuration=configuration, seed=seed)
        some = targets(model)[:n_cells]
        scale, before = (adata.layers[name][some] for name in ("scale", "untreated"))
        effect = np.log2(scale + PSEUDOCOUNT) - np.log2(before + PSEUDOCOUNT)
        found = coverage(model, None, some, scale, effect)
        rows += [{"data": name} | row for row in found]
    return rows


def coin(seed: int, n_cells: int) -> list[dict[str, Any]]:
    """Share of intervals of an effect that exclude 0, where there is none."""
    adata = load_kang()
    adata = adata[adata.obs["condition"] == "control"].copy()
    tossed = np.random.default_rng(seed).integers(2, size=adata.n_obs) == 1
    adata.obs["condition"] = np.where(tossed, "tossed", "control")
    model, _ = fit_ours(adata, "condition", "control", configuration=STOPPED, seed=seed)
    some = targets(model)[:n_cells]
    rows = []
    for name, refine in POSTERIORS.items():
        effect = model.get_treatment_effect(
            indices=some, n_samples=N_DRAWS, refine=refine, seed=0, silent=True
        )
        excluded = ((effect["lower"] > 0) | (effect["upper"] < 0)).to_numpy()
        size = effect["mean"].abs().to_numpy().mean()
        rows.append({"posterior": name, "exclude 0": excluded.mean(), "mean |effect|": size})
    return rows


def main() -> None:
    """Measure, print."""
    options = arguments()
    start(options)
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for seed in range(options.seeds):
        if {"ranks", "model"} & set(options.only):
            model = fit_kang(seed)
            if "ranks" in options.only:
                rows["ranks"] += ranks(model, seed, options)
            if "model" in options.only:
                rows["model"] += of_itself(model, seed, options.cells)
        if "other" in options.only:
            rows["other"] += of_others(seed, options.cells)
        if "coin" in options.only:
            rows["coin"] += coin(seed, options.cells)
    for part, by in (
        ("ranks", ["posterior", "of"]),
        ("model", ["of", "posterior"]),
        ("other", ["data", "of", "posterior"]),
        ("coin", ["posterior"]),
    ):
        if rows[part]:
            by_seed = pd.DataFrame(rows[part]).groupby(by, sort=False)
            show(f"{part}: mean of {options.seeds} seeds", by_seed.mean())
            if part == "coin":
                show("standard deviation", by_seed.std())


if __name__ == "__main__":
    main()
