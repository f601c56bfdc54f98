"""Effect of the fast schedule and of the separated preset's penalties on the latents.

    python benchmarks/schedules.py counts.h5ad --background control [--shared-key cell_type]
        [--within-key time_h] [--batch-key B] [--seeds 2]
    python benchmarks/schedules.py --simulated [--seeds 2]

Fits the model with the fast schedule: without penalties, with those of the preset, and with all
their weights divided and multiplied by 3. Prints mean and standard deviation over seeds of: the
held-out negative ELBO per pair; mixing of the condition in z (1 is best) and in s (0 is best); how
visible labels that both conditions share are in z (NMI, silhouette) and in s of target cells (NMI,
low is best); and how visible labels within the target cells are in s.

With ``--simulated`` the truth is known: s is independent of z, or a response that depends on z.
This prints how much of the true z and s (share of the variance, held-out linear regression) each
latent of the target cells contains. ``--reference`` also fits scvi-tools' model (minutes).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from common import (
    Configuration,
    fit_ours,
    fit_reference,
    read_counts,
    show,
    start,
    summarise,
)
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.analysis.separation import score_labels, score_latents
from pyro_contrastive.presets import Sizes, preset_arguments

AFFECTED = 0.1
"""Share of genes that the simulated treatment changes in every treated cell."""
WEIGHTS = {"fast": 0.0, "separated / 3": 1 / 3, "separated": 1.0, "separated x 3": 3.0}


def configuration(times: float) -> Configuration:
    """Return the fast schedule, with the preset's weights of penalties multiplied by `times`."""

    def model() -> dict[str, Any]:
        penalties = preset_arguments("separated", Sizes(2, 10, 10))["penalties"] if times else []
        for penalty in penalties:
            penalty.weight *= times
        return {"penalties": penalties}

    return Configuration(model, {"schedule": "fast"})


def latents(model: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Posterior means of z and s."""
    kinds = ("background", "salient")
    z, s = (model.get_latent_representation(representation_kind=kind) for kind in kinds)
    return np.asarray(z), np.asarray(s)


def scores(model: Any, adata: ad.AnnData, options: argparse.Namespace) -> dict[str, float]:
    """Score the latents of one fit by the available labels."""
    z, s = latents(model)
    condition = adata.obs[options.condition_key].astype(str)
    is_target = (condition != options.background).to_numpy()
    shared = None if options.shared_key is None else adata.obs[options.shared_key]
    table = score_latents(z, s, condition, labels=shared, background_category=options.background)
    values = table.set_index(["latent", "of", "measure"])["value"]
    found = {
        "mixing z": values["background", "condition", "mixing"],
        "mixing s": values["salient", "condition", "mixing"],
    }
    if shared is not None:
        found["shared in z NMI"] = values["background", "labels", "NMI"]
        found["silhouette"] = values["background", "labels", "silhouette"]
        found["shared in s NMI"] = values["salient", "labels", "NMI"]
    if options.within_key is not None:
        within = score_labels(s[is_target], adata.obs[options.within_key][is_target])
        found |= {"within in s NMI": within["NMI"], "within silhouette": within["silhouette"]}
    return found


def simulated(dependent: bool, seed: int) -> ad.AnnData:
    """Simulate counts whose salient latent partly depends on the background latent, or does not."""
    rng = np.random.default_rng(seed)
    n, n_genes = 2_000, 500
    treated = np.arange(n) >= n // 2
    z, noise = rng.standard_normal((n, 4)), rng.standard_normal((n, 2))
    s = (0.8 * z[:, :2] + 0.6 * noise if dependent else noise) * treated[:, None]
    affected = rng.random(n_genes) < AFFECTED
    logits = rng.normal(0, 1, n_genes) + 1.0 * treated[:, None] * affected
    logits = logits + z @ rng.normal(0, 0.4, (4, n_genes)) + s @ rng.normal(0, 0.4, (2, n_genes))
    scale = np.exp(logits - logits.max(1, keepdims=True))
    library = 1_000 * np.exp(rng.normal(0, 0.3, (n, 1)))
    rate = library * scale / scale.sum(1, keepdims=True)
    counts = rng.poisson(rng.gamma(5.0, rate / 5.0)).astype(np.float32)
    obs = pd.DataFrame({"condition": np.where(treated, "treated", "control")})
    adata = ad.AnnData(csr_matrix(counts), obs=obs.set_index(obs.index.astype(str)))
    adata.obsm.update({"z": z, "s": s})
    return adata


def explained(truth: NDArray[Any], latent: NDArray[Any]) -> float:
    """Share of the variance of the truth that a linear regression on the latent explains."""
    guess = cross_val_predict(RidgeCV(np.logspace(-3, 3, 7)), latent, truth, cv=5)
    return float(1 - ((truth - guess) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum())


def recovery(model: ContrastiveVI, adata: ad.AnnData) -> dict[str, float]:
    """Return how much of the true latents each fitted latent contains, in target cells."""
    of_target = (adata.obs["condition"] == "treated").to_numpy()
    z, s = (latent[of_target] for latent in latents(model))
    true_z, true_s = adata.obsm["z"][of_target], adata.obsm["s"][of_target]
    return {
        "true z in z": explained(true_z, z),
        "true s in s": explained(true_s, s),
        "true z in s": explained(true_z, s),
        "true s in z and s": explained(true_s, np.hstack([z, s])),
    }


def held_out(model: ContrastiveVI) -> float:
    """Negative ELBO per pair of held-out cells after the last epoch."""
    return float(model.history["elbo_validation"].iloc[-1].item())


def on_data(options: argparse.Namespace) -> pd.DataFrame:
    """Fit every setting to a data set with every seed."""
    adata = read_counts(options.data)
    rows = []
    for seed in range(options.seeds):
        if options.reference:
            is_target = (adata.obs[options.condition_key] != options.background).to_numpy()
            model, seconds = fit_reference(
                adata, is_target, batch_key=options.batch_key, seed=seed, check_val_every_n_epoch=1
            )
            row = {"model": "scvi-tools", "seed": seed, "s": seconds}
            rows.append(row | scores(model, adata, options))
        for name, times in WEIGHTS.items():
            model, _ = fit_ours(
                adata,
                options.condition_key,
                options.background,
                batch_key=options.batch_key,
                configuration=configuration(times),
                seed=seed,
            )
            rows.append({"model": name, "seed": seed, "-ELBO": held_out(model)})
            rows[-1] |= scores(model, adata, options)
            print(rows[-1], flush=True)
    return summarise(rows, ["model"])


def on_simulated(options: argparse.Namespace) -> pd.DataFrame:
    """Fit every setting to both simulated truths with every seed."""
    rows = []
    for dependent in (False, True):
        for seed in range(options.seeds):
            adata = simulated(dependent, seed)
            for name, times in WEIGHTS.items():
                model, _ = fit_ours(
                    adata, "condition", "control", configuration=configuration(times), seed=seed
                )
                truth = "s depends on z" if dependent else "s independent of z"
                rows.append({"truth": truth, "model": name, "seed": seed, "-ELBO": held_out(model)})
                rows[-1] |= recovery(model, adata)
                print(rows[-1], flush=True)
    return summarise(rows, ["truth", "model"])


def main() -> None:
    """Read the command line, fit, print."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("data", nargs="?", help="h5ad with raw counts")
    made.add_argument("--simulated", action="store_true")
    made.add_argument("--reference", action="store_true")
    made.add_argument("--condition-key", default="condition")
    made.add_argument("--background", default="control")
    made.add_argument("--shared-key", default=None)
    made.add_argument("--within-key", default=None)
    made.add_argument("--batch-key", default=None)
    made.add_argument("--seeds", type=int, default=2)
    made.add_argument("--threads", type=int, default=1)
    options = made.parse_args()
    if options.simulated == (options.data is not None):
        made.error("give a data set or --simulated")
    start(options)
    begun = time.perf_counter()
    table = on_simulated(options) if options.simulated else on_data(options)
    show(f"mean of {options.seeds} seeds", table)
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
