"""How the cost of our training grows with cells, genes, density, latents and mini-batches.

    python benchmarks/scaling.py [--quick] [--largest-cells 100000]

One quantity is varied at a time; the others stay at 2,000 genes, density .10, 10 + 10 latents,
128 + 128 cells per step, and 2,000 cells, which are enough to time steps. Prints milliseconds of
processor time per step, seconds per epoch, and the fitted exponent: how the cost of an epoch grows
with that quantity (1: in proportion).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import pandas as pd
from common import show, simulated, start
from step import our_run, our_steps

from pyro_contrastive._tools.torch_tools import reused_memory
from pyro_contrastive.training.steps import RECORDED_AFTER

USUAL = {"cells": 2_000, "genes": 2_000, "density": 0.1, "latents": 10, "batch_size": 128}


def measure(setting: dict[str, Any], n_steps: int) -> dict[str, float]:
    """Time the steps of one setting."""
    adata = simulated(setting["cells"], setting["genes"], setting["density"])
    sizes = {f"n_{kind}_latent": setting["latents"] for kind in ("background", "salient")}
    run = our_run(adata, setting["batch_size"], **sizes)
    steps = our_steps(run)
    with reused_memory():
        steps(RECORDED_AFTER + 3)  # from here on, steps are recorded
        taken = []
        for _ in range(n_steps):
            begun = time.process_time()
            steps(1)
            taken.append(time.process_time() - begun)
    median = float(np.median(taken))
    return {"ms a step": 1e3 * median, "s an epoch": median * run.batches.steps_per_epoch}


def main() -> None:
    """Vary each quantity, print a table and exponents."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--quick", action="store_true")
    made.add_argument("--largest-cells", type=int, default=100_000)
    made.add_argument("--threads", type=int, default=1)
    options = made.parse_args()
    start(options)
    varied: dict[str, list[float]] = {
        "cells": [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= options.largest_cells],
        "genes": [500, 2_000, 8_000, 20_000],
        "density": [0.02, 0.1, 0.3],
        "latents": [5, 10, 40],
        "batch_size": [32, 128, 512],
    }
    if options.quick:
        varied = {name: values[:2] for name, values in varied.items()}
    rows, exponents = [], {}
    for name, values in varied.items():
        found = []
        for value in values:
            row = measure(USUAL | {name: value}, 5 if options.quick else 15)
            found.append(row["s an epoch"])
            rows.append({"varied": name, "value": value} | row)
        exponents[name] = float(np.polyfit(np.log(values), np.log(found), 1)[0])
    show("Cost by size", pd.DataFrame(rows).set_index(["varied", "value"]))
    show("Exponent of the cost of an epoch", pd.Series(exponents).to_frame("exponent"), digits=2)


if __name__ == "__main__":
    main()
