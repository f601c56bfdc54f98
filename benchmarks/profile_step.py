"""Where the time of our training step goes, and a floor computed from operations and bytes.

    python benchmarks/profile_step.py [--cells 4000 --genes 2000 --density 0.1 --batch-size 128]
        [--accelerator gpu]

The parts of a plain step are timed one after another in running steps (processor time, medians); a
recorded step, which is what training uses, is timed as a whole. The floor is what the arithmetic
needs at least on this machine: operations of the dense matrix products divided by the speed of a
large one; non-zero counts times hidden units for the sparse products, at the same speed (on a GPU,
all counts); log, exp and sigmoid of every cell and gene, timed separately; and the arrays of
[cells, genes] that have to be written and read once, divided by the speed of copying one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pandas as pd
import pyro
import torch
from common import arguments_of_data, clock, show, simulated, start
from step import our_run, our_steps

from pyro_contrastive._tools.torch_tools import own_params, reused_memory
from pyro_contrastive.training.run import Run
from pyro_contrastive.training.steps import RECORDED_AFTER

# Per cell and gene: gradient and value of two heads, of the mean, and of three parameters.
ARRAYS = 10
FUNCTIONS = (torch.log1p, torch.exp, torch.log, torch.sigmoid, torch.exp)  # the last one: softmax


Clock = Callable[[], float]


def seconds(work: Callable[[], object], now: Clock, times: int = 30) -> float:
    """Return the median time of some work."""
    taken = []
    for _ in range(times):
        begun = now()
        work()
        taken.append(now() - begun)
    return sorted(taken)[times // 2]


def parts(run: Run, n_epochs: int, now: Clock) -> pd.Series:
    """Time the parts of running steps; return medians in milliseconds."""
    objective, vae, rows = run.vae.objective, run.vae, []
    vae.train()
    with reused_memory(), pyro.validation_enabled(False), own_params():
        for _ in range(n_epochs):
            for indices in run.batches.epoch():
                marks = [now()]
                batch = run.cells(indices)
                marks.append(now())
                run.optimizer.zero_grad()
                (traces,) = objective.traces(vae.model, vae.guide, batch)
                marks.append(now())
                loss = objective.loss_of_traces(*traces)
                marks.append(now())
                loss.backward()
                marks.append(now())
                run.optimizer.step()
                marks.append(now())
                rows.append(marks)
    names = ("mini-batch", "model and guide", "loss and its parts", "gradient", "optimiser")
    table = 1e3 * pd.DataFrame(rows).diff(axis=1).iloc[:, 1:].set_axis(names, axis=1)
    return table.median()


def recorded(run: Run, now: Clock, n_steps: int = 60) -> float:
    """Time recorded steps, from indices to updated weights; return the median in milliseconds."""
    take, taken = our_steps(run), []
    with reused_memory():
        take(2 * RECORDED_AFTER)
        for _ in range(n_steps):
            begun = now()
            take(1)
            taken.append(1e3 * (now() - begun))
    return sorted(taken)[n_steps // 2]


def floor(options: argparse.Namespace, n_hidden: int = 128) -> pd.Series:
    """Compute the floor, in milliseconds."""
    n_cells, n_genes = 2 * options.batch_size, options.genes
    is_cpu, now = options.accelerator == "cpu", clock(options.accelerator)
    device, size = ("cpu", 1024) if is_cpu else ("cuda", 8192)
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    speed = 2 * size**3 / seconds(lambda: left @ right, now)  # operations per second
    table = torch.rand(n_cells, n_genes, device=device) + 0.1
    other = torch.empty_like(table)
    products = 2 * n_cells * n_genes * n_hidden  # operations of one dense product
    sparse = products * options.density if is_cpu else products  # a GPU has no sparse products
    found = {
        "dense products (6)": 6 * products / speed,
        "encoders' products (4)": 4 * sparse / speed,
        "functions": sum(seconds(lambda f=f: f(table, out=other), now) for f in FUNCTIONS),
        "arrays": ARRAYS * seconds(lambda: other.copy_(table), now),
    }
    return 1e3 * pd.Series(found)


def main() -> None:
    """Print the parts of the step and the parts of the floor."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments_of_data(made)
    made.set_defaults(cells=4_000)
    made.add_argument("--epochs", type=int, default=4)
    made.add_argument("--quick", action="store_true")
    options = made.parse_args()
    start(options)
    adata = simulated(options.cells, options.genes, options.density)
    run, now = our_run(adata, options.batch_size, options.accelerator), clock(options.accelerator)
    measured = parts(run, 1 if options.quick else options.epochs, now)
    computed = floor(options)
    for title, column in (("A plain step", measured), ("Floor", computed)):
        column["in all"] = column.sum()
        show(f"{title}, ms", column.to_frame("ms"), digits=2)
    whole = recorded(run, now)
    print(f"\nA recorded step: {whole:.2f} ms, {whole / computed['in all']:.2f} times the floor")


if __name__ == "__main__":
    main()
