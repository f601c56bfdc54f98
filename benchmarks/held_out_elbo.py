"""Held-out ELBO of scvi-tools' contrastiveVI and of ours, on one split, by one estimator.

    python benchmarks/held_out_elbo.py [counts.h5ad --condition-key K --background B] [--epochs N]

Both train with their own defaults (scvi-tools warms its KL weight up over 400 epochs, ours over a
quarter of the run) for the same number of epochs, on the same training cells. The reference's
weights are then copied into our module, and both are evaluated on the held-out cells with the same
noise: negative ELBO per background/target pair, analytic KL. Needs the ``parity`` extra.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anndata as ad
import numpy as np
import pyro
import torch

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.data import load_kang
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.interop.scvi import rename_scvi_weights
from pyro_contrastive.training.devices import one_device
from pyro_contrastive.training.evaluate import evaluate
from pyro_contrastive.training.fit import fit
from pyro_contrastive.training.history import History
from pyro_contrastive.training.plan import TrainingPlan, default_max_epochs
from pyro_contrastive.training.run import RunSettings
from pyro_contrastive.training.splits import Population, Split, split_populations
from pyro_contrastive.vae import ContrastiveVAE

Weights = dict[str, torch.Tensor]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", help="h5ad with raw counts; default: bundled Kang")
    parser.add_argument("--condition-key", default="condition")
    parser.add_argument("--background", default="control")
    parser.add_argument("--n-top-genes", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=None, help="default: the reference's rule")
    parser.add_argument("--seeds", type=int, default=1)
    return parser.parse_args()


def load(options: argparse.Namespace) -> ad.AnnData:
    """Read the data, keep variable genes and cells with counts."""
    adata = load_kang() if options.data is None else ad.read_h5ad(options.data)
    if adata.n_vars > options.n_top_genes:
        import scanpy as sc

        normalised = adata.copy()
        sc.pp.normalize_total(normalised, target_sum=1e4)
        sc.pp.log1p(normalised)
        sc.pp.highly_variable_genes(normalised, n_top_genes=options.n_top_genes)
        adata = adata[:, normalised.var["highly_variable"].to_numpy()]
    return adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()


def train_reference(
    adata: ad.AnnData,
    split: Split,
    cells: Population,
    epochs: int | None,
    seed: int,
    callbacks: Sequence[Any] = (),
) -> tuple[Weights, float]:
    """Train scvi-tools' model; return its weights under our names, and the seconds it took."""
    import scvi

    scvi.settings.seed = seed
    scvi.external.ContrastiveVI.setup_anndata(adata)
    model = scvi.external.ContrastiveVI(adata)
    parts = [np.concatenate([p.background, p.target]) for p in (split.train, split.validation)]
    start = time.perf_counter()
    model.train(
        background_indices=cells.background.tolist(),
        target_indices=cells.target.tolist(),
        max_epochs=epochs,
        datasplitter_kwargs={"external_indexing": [*parts, np.array([], dtype=int)]},
        enable_progress_bar=False,
        logger=False,
        **({"callbacks": list(callbacks)} if callbacks else {}),
    )
    seconds = time.perf_counter() - start
    return rename_scvi_weights(model.module.state_dict(), latent_library=False), seconds


def bundled() -> tuple[ad.AnnData, CellData, Population]:
    """Return the bundled data, set up, and its populations."""
    adata = load_kang()
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    data = Setup.of(adata).extract(adata)
    background = np.flatnonzero(data.condition == 0)
    return adata, data, Population(background, np.flatnonzero(data.condition != 0))


def held_out(weights: Weights, data: CellData, cells: Population) -> float:
    """Negative ELBO per pair of held-out cells of a default model with these weights."""
    vae = ContrastiveVAE(data.counts.shape[1])
    vae.load_state_dict(weights, strict=False)
    return sum(evaluate(vae, data, cells, 512, "cpu").values())


Curve = list[tuple[float, float]]
"""Processor seconds since the start, and the held-out negative ELBO then."""


def reference_curve(epochs: int | None, seed: int) -> Curve:
    """Train scvi-tools' model on the bundled data; evaluate it after every fourth epoch."""
    from lightning.pytorch.callbacks import Callback

    adata, data, cells = bundled()
    split = split_populations(cells.background, cells.target, rng=np.random.default_rng(seed))
    kept: list[tuple[float, Weights]] = []
    begun, keeping = time.process_time(), 0.0

    class Keep(Callback):
        """Keeps the weights of every fourth epoch without counting the time."""

        def on_train_epoch_end(self, trainer: Any, plan: Any) -> None:
            nonlocal keeping
            at = time.process_time()
            if trainer.current_epoch % 4 == 0 or trainer.current_epoch + 1 == trainer.max_epochs:
                weights = {k: v.detach().clone() for k, v in plan.module.state_dict().items()}
                kept.append((at - begun - keeping, weights))
            keeping += time.process_time() - at

    train_reference(adata, split, cells, epochs, seed, [Keep()])
    return [
        (at, held_out(rename_scvi_weights(w, latent_library=False), data, split.validation))
        for at, w in kept
    ]


def our_curve(setting: str, epochs: int | None, seed: int) -> Curve:
    """Train ours on the bundled data with the fast schedule; evaluate it after every epoch.

    Parameters
    ----------
    setting
        ``"fast"``, or ``"separated"`` for the preset with the fast schedule.
    epochs, seed
        Epochs of training (None: those of the schedule), and the random seed.
    """
    adata, data, cells = bundled()
    rng = np.random.default_rng(seed)
    split = split_populations(cells.background, cells.target, rng=rng)
    pyro.set_rng_seed(seed)
    make = partial(ContrastiveVI.from_preset, adata, "separated")
    model = make() if setting == "separated" else ContrastiveVI(adata)
    kept: list[tuple[float, Weights]] = []
    begun, keeping = time.process_time(), 0.0

    class Keeping(History):
        """Keeps the weights of every epoch without counting the time."""

        def add_epoch(self, values: Mapping[str, float]) -> None:
            nonlocal keeping
            at = time.process_time()
            weights = {k: v.detach().clone() for k, v in model.module.state_dict().items()}
            kept.append((at - begun - keeping, weights))
            super().add_epoch(values)
            keeping += time.process_time() - at

    steps = -(-max(len(split.train.background), len(split.train.target)) // 128)
    fit(
        model.module,
        data,
        split,
        TrainingPlan.from_kwargs(None, "fast"),
        Keeping(),
        RunSettings(
            epochs or default_max_epochs(len(data), "fast", steps),
            check_val_every_n_epoch=None,
            progress_bar=False,
        ),
        fabric=one_device("cpu", 1),
        rng=rng,
    )
    return [(at, held_out(w, data, split.validation)) for at, w in kept]


def main() -> None:
    """Train both, print one line each and the ratio."""
    options = arguments()
    warnings.simplefilter("ignore")
    adata = load(options)
    ContrastiveVI.setup_anndata(
        adata, condition_key=options.condition_key, background=options.background
    )
    data = Setup.of(adata).extract(adata)
    cells = Population(np.flatnonzero(data.condition == 0), np.flatnonzero(data.condition != 0))
    print(
        f"{len(cells.background)} background and {len(cells.target)} target cells, "
        f"{adata.n_vars} genes, {torch.get_num_threads()} threads"
    )
    for seed in range(options.seeds):
        rng = np.random.default_rng(seed)
        split = split_populations(cells.background, cells.target, rng=rng)
        weights, reference_seconds = train_reference(adata, split, cells, options.epochs, seed)
        reference = ContrastiveVAE(adata.n_vars)
        reference.load_state_dict(weights, strict=False)
        pyro.set_rng_seed(seed)
        ours = ContrastiveVAE(adata.n_vars)
        result = fit(
            ours,
            data,
            split,
            TrainingPlan(),
            History(),
            RunSettings(options.epochs or default_max_epochs(len(data)), progress_bar=False),
            fabric=one_device("cpu", 1),
            rng=rng,
        )
        rows = (
            ("scvi-tools", reference, reference_seconds),
            ("pyro_contrastive", ours, result.seconds),
        )
        elbos = []
        for name, vae, seconds in rows:
            parts_of_loss = evaluate(vae, data, split.validation, 512, "cpu")
            elbos.append(sum(parts_of_loss.values()))
            detail = "  ".join(f"{key} {value:8.2f}" for key, value in parts_of_loss.items())
            print(
                f"seed {seed}  {name:17s} {seconds:7.1f} s  -ELBO/pair {elbos[-1]:8.2f}  {detail}"
            )
        print(
            f"seed {seed}  ours / reference: time {rows[1][2] / rows[0][2]:.2f}, "
            f"held-out -ELBO {elbos[1] / elbos[0]:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
