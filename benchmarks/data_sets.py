"""Does the fast schedule converge, and are its latents as good? scvi-tools and ours, one data set.

    python benchmarks/data_sets.py counts.h5ad --rows rows.jsonl --condition-key condition
        --background control [--shared-key cell_type] [--within-key time_h] [--probe]
        [--seeds 0 1] [--settings scvi-tools fast separated reference]
        [--try 'name={"steps": 1000, "plan": {"lr": 0.01}, "penalties": [1, 30, 0]}']
    python benchmarks/data_sets.py --rows rows.jsonl

Every seed makes one split of the cells, the same for all settings. ``scvi-tools`` is its default
run; ``fast`` and ``separated`` (the preset) are trained with our fast schedule, ``reference`` with
the reference's; ``best epoch`` restores the weights of the best epoch, as ``early_stopping`` does.
``--try`` adds settings: total number of steps, arguments of ``plan_kwargs``, weights of
Wasserstein, MMD, HSIC and LateSalient, early stopping. After every epoch, without counting the
time, held-out cells are evaluated by one function
(:func:`pyro_contrastive.training.evaluate.evaluate`; negative ELBO per pair, analytic KL), for
which the weights of scvi-tools are copied into our module. The latents of all cells at the end of
the run are scored as in :mod:`pyro_contrastive.analysis.separation`.

Each fit is appended to the file of rows as soon as it is done, and is not repeated. At the end, or
without data, tables of everything in that file are printed: mean (standard deviation) over seeds.
"s to the best": processor seconds until a setting is as good as scvi-tools ever gets with that
seed; "times sooner": how many times longer scvi-tools took. Needs the ``parity`` extra.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import REFERENCE, read_counts, start
from curves import Data, Setting, fit_ours, fit_scvi_tools
from numpy.typing import NDArray
from schedules import latents
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.analysis.separation import score_labels, score_latents

SEPARATED = {
    "penalties": (1.0, 30.0, 30.0, 1.0),
    "model": {"n_layers": 2, "n_layers_decoder": 1},
}
OURS = {
    "fast": Setting(),
    "separated": Setting(**SEPARATED),
    "fast, best epoch": Setting(early_stopping=True),
    "separated, best epoch": Setting(**SEPARATED, early_stopping=True),
    "reference": Setting(schedule="reference"),
}


def scores(model: ContrastiveVI, data: Data, options: argparse.Namespace) -> dict[str, float]:
    """Score the latents of one fit by the available labels."""
    z, s = latents(model)
    obs = data.adata.obs
    condition = obs[options.condition_key].astype(str)
    shared = None if options.shared_key is None else obs[options.shared_key]
    table = score_latents(z, s, condition, labels=shared, background_category=options.background)
    values = table.set_index(["latent", "of", "measure"])["value"]
    found = {
        "condition mixed in z": values["background", "condition", "mixing"],
        "condition mixed in s": values["salient", "condition", "mixing"],
    }
    if shared is not None:
        found["shared in z: NMI"] = values["background", "labels", "NMI"]
        found["shared in z: silhouette"] = values["background", "labels", "silhouette"]
        found["shared in s: NMI"] = values["salient", "labels", "NMI"]
    if options.within_key is not None:
        is_target = (condition != options.background).to_numpy()
        labels = obs[options.within_key].astype(str).to_numpy()
        within = score_labels(s[is_target], labels[is_target])
        found["within in s: NMI"] = within["NMI"]
        found["within in s: silhouette"] = within["silhouette"]
        if options.probe:
            found |= probes(s, labels, data)
    return found


def probes(s: NDArray[Any], labels: NDArray[Any], data: Data) -> dict[str, float]:
    """Balanced accuracy of a linear classifier of target cells by their salient latents.

    Fitted on the training cells and scored on the held-out cells; since the latter may be few,
    also cross-validated over all cells.
    """
    regression = LogisticRegression(max_iter=500, class_weight="balanced")
    probe = make_pipeline(StandardScaler(), regression)
    seen, unseen = data.split.train.target, data.split.validation.target
    target = data.populations.target
    guess = probe.fit(s[seen], labels[seen]).predict(s[unseen])
    crossed = cross_val_predict(probe, s[target], labels[target], cv=5)
    return {
        "within in s: probe, held out": balanced_accuracy_score(labels[unseen], guess),
        "within in s: probe": balanced_accuracy_score(labels[target], crossed),
    }


def tables(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Compare every fit with scvi-tools' of the same seed; return mean (sd) over seeds."""
    reference = {(r["data"], r["seed"]): r["curve"] for r in rows if r["setting"] == REFERENCE}
    found = []
    for row in rows:
        curve = np.array(row["curve"])
        made = {key: row[key] for key in ("data", "setting")}
        made |= {"s": curve[-1, 0], "-ELBO, end": curve[-1, 1], "-ELBO, best": curve[:, 1].min()}
        beside = np.array(reference.get((row["data"], row["seed"]), [(np.nan, np.nan)]))
        as_good = curve[curve[:, 1] <= beside[:, 1].min(), 0]
        made["s to the best"] = as_good[0] if len(as_good) else np.nan
        made["times sooner"] = beside[beside[:, 1].argmin(), 0] / made["s to the best"]
        made["-ELBO minus scvi-tools' best"] = curve[-1, 1] - beside[:, 1].min()
        found.append(made | row["scores"])
    groups = pd.DataFrame(found).groupby(["data", "setting"], sort=False)
    means, deviations, counts = groups.mean(), groups.std(), groups.size()
    text = means.map("{:.3g}".format).where(means.abs() < 100, means.map("{:,.1f}".format))  # noqa: PLR2004
    text += deviations.map(" ({:.2g})".format).where(deviations.notna(), "")
    return text.where(means.notna(), "-").assign(seeds=counts)


def main() -> None:
    """Fit what has not been fitted yet; print the tables."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("data", nargs="?", help="h5ad with raw counts")
    made.add_argument("--rows", type=Path, required=True, help="file the fits are appended to")
    made.add_argument("--latents", type=Path, help="folder to keep the latents in")
    made.add_argument("--name", help="name of the data set; default: that of the file")
    made.add_argument("--condition-key", default="condition")
    made.add_argument("--background", default="control")
    made.add_argument("--shared-key", help="label that both conditions share")
    made.add_argument("--within-key", help="label within the target cells")
    made.add_argument("--probe", action="store_true", help="also classify by the label within")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    names = [REFERENCE, *OURS]
    made.add_argument("--settings", nargs="*", choices=names, default=names[:3])
    made.add_argument("--try", dest="tries", action="append", default=[], metavar="NAME=JSON")
    made.add_argument("--epochs", type=int, help="epochs of every fit; default: the schedule's")
    made.add_argument("--threads", type=int, default=1)
    options = made.parse_args()
    start(options)
    read = options.rows.read_text().splitlines() if options.rows.exists() else []
    rows = [json.loads(line) for line in read]
    ours = {name: OURS[name] for name in options.settings if name != REFERENCE}
    for name, given in (text.split("=", 1) for text in options.tries):
        ours[name] = Setting(**json.loads(given))
    fits = {REFERENCE: fit_scvi_tools} if REFERENCE in options.settings else {}
    fits |= {name: partial(fit_ours, setting=setting) for name, setting in ours.items()}
    if options.data is not None:
        adata = read_counts(options.data)
        called = options.name or Path(options.data).stem
        done = {(row["data"], row["setting"], row["seed"]) for row in rows}
        for seed in options.seeds:
            data = Data.of(adata, options, seed)
            for name in [name for name in fits if (called, name, seed) not in done]:
                model, clock = fits[name](data, epochs=options.epochs, seed=seed)
                rows.append({"data": called, "setting": name, "seed": seed, "curve": clock.curve})
                rows[-1]["scores"] = scores(model, data, options)
                if options.latents is not None:
                    file_name = f"{called}-{name}-{seed}.npz".replace(" ", "_")
                    z, s = latents(model)
                    np.savez_compressed(options.latents / file_name, z=z, s=s)
                with options.rows.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(called, name, seed, *clock.curve[-1], rows[-1]["scores"], flush=True)
    for name, table in tables(rows).groupby(level="data", sort=False):
        known = (table.loc[name] != "-").any()
        print(f"\n{name}\n{table.loc[name].loc[:, known].T.to_string()}", flush=True)


if __name__ == "__main__":
    main()
