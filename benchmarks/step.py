"""Time of a training step, scvi-tools' and ours, measured alternately in one process.

    python benchmarks/step.py [--cells 10000 --genes 2000 --density 0.1 --batch-size 128]
        [--accelerator gpu]

A step is everything from indices of cells to updated weights: fetching the mini-batch, loss,
gradient, optimiser. Both use their default settings, and as many background as target cells. What
Lightning adds to scvi-tools' step (logging, callbacks) is left out; see epochs in ``bench.py``.
Steps of the two take turns, and medians of processor time are compared, because these vary least on
a busy machine; on a GPU it is wall time, of several steps at once. Needs the ``parity`` extra.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain, repeat
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from anndata import AnnData
from common import REFERENCE, arguments_of_data, clock, show, simulated, start

from pyro_contrastive import ContrastiveVI
from pyro_contrastive._tools.torch_tools import own_params, reused_memory
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.training.devices import one_device
from pyro_contrastive.training.finite import no_nan_warnings
from pyro_contrastive.training.plan import TrainingPlan
from pyro_contrastive.training.run import Run, RunSettings
from pyro_contrastive.training.splits import Population, Split

Steps = Callable[[int], None]
"""Takes the given number of steps."""


def reference_steps(adata: AnnData, batch_size: int, accelerator: str = "cpu") -> Steps:
    """Make scvi-tools' steps."""
    import scvi
    from scvi.external.contrastivevi._contrastive_dataloader import ContrastiveDataLoader

    scvi.settings.seed = 0
    scvi.external.ContrastiveVI.setup_anndata(adata)
    model = scvi.external.ContrastiveVI(adata)
    model.to_device("cpu" if accelerator == "cpu" else "cuda:0")
    optimizer = scvi.train.TrainingPlan(model.module).configure_optimizers()["optimizer"]
    target = (adata.obs["condition"] != "control").to_numpy()
    loader = ContrastiveDataLoader(
        model.adata_manager,
        np.flatnonzero(~target).tolist(),
        np.flatnonzero(target).tolist(),
        shuffle=True,
        batch_size=batch_size,
        drop_last=True,
    )
    batches = chain.from_iterable(repeat(loader))
    model.module.train()

    def steps(n: int) -> None:
        for _ in range(n):
            _, _, losses = model.module(next(batches), loss_kwargs={"kl_weight": 1.0})
            optimizer.zero_grad()
            losses.loss.backward()
            optimizer.step()

    return steps


def our_run(adata: AnnData, batch_size: int, accelerator: str = "cpu", **model_kwargs: Any) -> Run:
    """Make a training run of our model on all cells."""
    pyro.set_rng_seed(0)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    model = ContrastiveVI(adata, **model_kwargs)
    data = Setup.of(adata).extract(adata)
    cells = Population(np.flatnonzero(data.condition == 0), np.flatnonzero(data.condition != 0))
    nothing = Population(cells.background[:0], cells.target[:0])
    return Run(
        model.module,
        data,
        Split(cells, nothing, nothing),
        TrainingPlan(n_epochs_kl_warmup=0),
        RunSettings(max_epochs=1, batch_size=batch_size),
        fabric=one_device(accelerator, 1),
        rng=np.random.default_rng(0),
    )


def our_steps(run: Run) -> Steps:
    """Make our steps."""

    def indices() -> Iterator[Any]:
        while True:
            yield from run.batches.epoch()

    order = indices()
    run.vae.train()

    def steps(n: int) -> None:
        with pyro.validation_enabled(False), no_nan_warnings(), own_params():
            for _ in range(n):
                run.train_step(run.cells(next(order)), "in a benchmark")

    return steps


def take_turns(
    steps: dict[str, Steps], now: Callable[[], float], *, rounds: int, at_once: int
) -> pd.DataFrame:
    """Time some steps of each in every round; return milliseconds per step, ``[rounds, names]``."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, take in steps.items():
            # Our training reuses memory from step to step; scvi-tools' does not.
            with nullcontext() if name == REFERENCE else reused_memory():
                take(2)  # not timed: caches and memory still hold the other's data
                begun = now()
                take(at_once)
                times[name].append(1e3 * (now() - begun) / at_once)
    return pd.DataFrame(times)


def compare(
    adata: AnnData, batch_size: int, accelerator: str = "cpu", *, rounds: int, at_once: int
) -> pd.DataFrame:
    """Return median and quartiles of the milliseconds per step, and how many times faster."""
    steps = {
        REFERENCE: reference_steps(adata, batch_size, accelerator),
        "ours": our_steps(our_run(adata, batch_size, accelerator)),
    }
    times = take_turns(steps, clock(accelerator), rounds=rounds, at_once=at_once)
    table = times.quantile([0.5, 0.25, 0.75]).T.set_axis(["ms a step", "25 %", "75 %"], axis=1)
    table["cells/s"] = 2 * batch_size / table["ms a step"] * 1e3
    table["times faster"] = table.loc[REFERENCE, "ms a step"] / table["ms a step"]
    return table


def main() -> None:
    """Time both and print a table."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments_of_data(made)
    made.add_argument("--rounds", type=int, default=30)
    made.add_argument("--at-once", type=int, default=5, help="steps in a row")
    options = made.parse_args()
    start(options)
    adata = simulated(options.cells, options.genes, options.density)
    how_long = {"rounds": options.rounds, "at_once": options.at_once}
    table = compare(adata, options.batch_size, options.accelerator, **how_long)
    show("Training step", table, digits=2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
