"""What a GPU makes of it: its tests, cells a second beside the floor, and what the ELBO gains.

    python benchmarks/gpu.py [--minutes 8] [--write]
    python benchmarks/gpu.py --accelerator cpu --quick     # tries the script where there is no GPU

1. The tests of the suite that need a GPU.
2. Cells a second in recorded steps, counts resident, at several sizes of mini-batches (of each
   population), beside the floor of ``profile_step.py``, and beside scvi-tools if it is installed.
3. Held-out negative ELBO per pair after as many cells have been seen at every size of mini-batches,
   for the preset "separated" with the fast schedule, also in bfloat16.

It stops to begin new parts when its minutes are over, prints what it has, and with ``--write``
keeps it in ``benchmarks/results/gpu.md``. It needs nothing that ``pip install '.[test]'`` does not
bring.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from anndata import AnnData
from common import REFERENCE, clock, simulated, start
from profile_step import floor
from step import our_run, our_steps, reference_steps, take_turns

from pyro_contrastive import ContrastiveVI

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "gpu.md"
SIZES = (128, 1024, 4096)
CELLS_SEEN = 500_000
"""Cells of each population that a fit of the third part sees."""


def arguments() -> Namespace:
    """Read the command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--accelerator", default="gpu", choices=["gpu", "cpu"])
    made.add_argument("--cells", type=int, default=50_000)
    made.add_argument("--genes", type=int, default=2_000)
    made.add_argument("--density", type=float, default=0.1)
    made.add_argument("--minutes", type=float, default=8.0)
    made.add_argument("--threads", type=int, default=8)
    made.add_argument("--quick", action="store_true", help="few cells and steps")
    made.add_argument("--write", action="store_true")
    return made.parse_args()


def tests(is_quick: bool) -> str:
    """Run the tests that need a GPU; return the last lines."""
    paths = ["tests/training/test_gpu.py", "tests/training/test_captured.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    command += ["-m", "gpu", "--collect-only"] if is_quick else ["-m", "gpu"]
    done = subprocess.run([*command, *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
    return "\n".join([*failed[:40], lines[-1] if lines else done.stderr[-500:]])


def speeds(adata: AnnData, options: Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row per size of mini-batch: cells a second, and times the floor."""
    rounds, at_once = (3, 2) if options.quick else (10, 20)
    now = clock(options.accelerator)
    for size in (128,) if options.quick else SIZES:
        steps = {"ours": our_steps(our_run(adata, size, options.accelerator))}
        steps["ours"](20)  # recorded and captured, not timed
        with suppress(ImportError):
            steps[REFERENCE] = reference_steps(adata, size, options.accelerator)
        times = take_turns(steps, now, rounds=rounds, at_once=at_once).median()
        least = floor(Namespace(**(vars(options) | {"batch_size": size}))).sum()
        row = {"mini-batch": size, "cells/s": 2e3 * size / times["ours"], "ms": times["ours"]}
        row |= {"floor, ms": least, "times floor": times["ours"] / least}
        if REFERENCE in times:
            row |= {f"{REFERENCE}, ms": times[REFERENCE]}
            row |= {"times faster": times[REFERENCE] / times["ours"]}
        yield row


def fits(adata: AnnData, options: Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row per size and precision: held-out ELBO and seconds after the same work."""
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    n_epochs = 1 if options.quick else max(1, round(CELLS_SEEN / (len(adata) / 2)))
    for size in SIZES[:1] if options.quick else SIZES:
        for precision in ("32-true", "bf16-mixed"):
            pyro.set_rng_seed(0)
            model = ContrastiveVI.from_preset(adata, "separated")
            began = time.perf_counter()
            model.train(
                schedule="fast",
                max_epochs=n_epochs,
                batch_size=size,
                precision=precision,
                accelerator=options.accelerator,
                early_stopping=False,
                seed=0,
                enable_progress_bar=False,
            )
            seconds = time.perf_counter() - began
            held_out = float(model.history["elbo_validation"].iloc[-1, 0])
            row = {"mini-batch": size, "precision": precision, "epochs": n_epochs}
            yield row | {"held-out -ELBO": held_out, "s": seconds}


def main() -> None:
    """Do all three parts, print, and keep what was printed if asked to."""
    options = arguments()
    until = time.monotonic() + 60 * options.minutes
    is_gpu = options.accelerator == "gpu"
    if is_gpu and not torch.cuda.is_available():
        raise SystemExit("There is no GPU; --accelerator cpu --quick tries the script without one.")
    start(options)
    device = torch.cuda.get_device_name() if is_gpu else "processor"
    shown = [f"{device}, torch {torch.__version__}", f"tests: {tests(not is_gpu)}"]
    print("\n".join(shown), flush=True)
    n_cells = 4_000 if options.quick else options.cells
    adata = simulated(n_cells, options.genes, options.density)
    for title, rows in (("Speed", speeds(adata, options)), ("Held-out ELBO", fits(adata, options))):
        found = []
        while time.monotonic() < until and (row := next(rows, None)) is not None:
            found.append(row)
            print(row, flush=True)
        table = pd.DataFrame(found).replace({np.nan: None}).to_string(index=False)
        shown += ["", title, table]
        print(f"\n{title}\n{table}", flush=True)
    if options.write:
        command = f"python benchmarks/gpu.py --minutes {options.minutes:g}"
        text = "\n".join(shown)
        RESULT.write_text(f"# On a GPU\n\n`{command}`\n\n```\n{text}\n```\n", encoding="utf-8")


if __name__ == "__main__":
    main()
