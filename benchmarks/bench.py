"""scvi-tools' contrastiveVI and ours side by side: one table of ratios.

    make bench
    python benchmarks/bench.py [--quick] [--write] [--repeats 3] [--epochs N]

Every measurement runs in its own process, the two tools in turn, and the median over repeats is
shown. Seconds are processor time, which other work on the machine affects least; with one thread
(the default) they equal wall time on an idle machine.

* step: ``step.py``; simulated counts, 10,000 cells x 2,000 genes, density .10.
* epoch, latents, expression, differential expression, peak memory: the same counts, through the
  public methods. Expression: 25 draws of 1,000 cells, all genes. Latents: both, of all cells.
* held-out ELBO: on the bundled interferon data, one split, one estimator. The weights of scvi-tools
  after an epoch are copied into our module, and every curve is computed by
  :func:`pyro_contrastive.training.evaluate.evaluate` on held-out cells. "to the reference's best":
  the time until ours is as good as scvi-tools ever gets in its default run.

``--write`` saves the table in ``benchmarks/results``. Needs the ``parity`` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

HERE = Path(__file__).parent
REFERENCE, OURS = "scvi-tools", "ours"
TOOLS = (REFERENCE, OURS)
IMPORTS = {
    "torch, pyro, anndata": "torch, pyro, anndata",
    REFERENCE: "scvi, scvi.external",
    OURS: "pyro_contrastive",
}
MORE_IS_BETTER = {"cells/s"}


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Do some work; return the processor time it took, and what it returned."""
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


def step(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time training steps of both, turn by turn."""
    from step import compare

    rounds, at_once = (5, 3) if options.quick else (20, 10)
    adata = ad.read_h5ad(options.counts)
    table = compare(adata, options.batch_size, rounds=rounds, at_once=at_once)
    return table[["ms a step", "cells/s"]].to_dict()


def usage(options: argparse.Namespace) -> dict[str, float]:
    """Time the public methods of one tool, as a user calls them."""
    from common import (
        Configuration,
        fit_ours,
        fit_reference,
        our_differential,
        reference_differential,
    )

    import_module("scvi.external" if options.tool == REFERENCE else "pyro_contrastive")
    adata = ad.read_h5ad(options.counts)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    is_target = (adata.obs["condition"] != "control").to_numpy()
    epochs = 1 if options.quick else 3
    some = np.flatnonzero(is_target)[:1000]
    kinds = ("background", "salient")
    plain = Configuration(train={"check_val_every_n_epoch": None})

    def train(epochs: int) -> Any:
        if options.tool == REFERENCE:
            return fit_reference(adata, is_target, epochs=epochs)[0]
        return fit_ours(adata, "condition", "control", configuration=plain, epochs=epochs)[0]

    train(1)  # mostly imports
    once, _ = seconds(lambda: train(1))  # work done once per run is not part of an epoch
    took, model = seconds(lambda: train(1 + epochs))
    took -= once
    compared = reference_differential if options.tool == REFERENCE else our_differential

    def latents() -> None:
        for kind in kinds:
            model.get_latent_representation(representation_kind=kind)

    def expression() -> None:
        model.get_normalized_expression(indices=some, n_samples=25, return_numpy=True)

    found = {
        "s an epoch": took / epochs,
        "s latents": seconds(latents)[0],
        "s expression": seconds(expression)[0],
    }
    found["s differential expression"] = seconds(lambda: compared(model, is_target, seed=0))[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Reading the counts imports our library for both tools, so also report the part above that.
    return found | {
        "MB peak memory": peak / 1024,
        "MB above imports and counts": (peak - before) / 1024,
    }


def held_out(options: argparse.Namespace) -> list[tuple[float, float]]:
    """Train one tool; return processor seconds and held-out negative ELBO after every epoch."""
    from held_out_elbo import our_curve, reference_curve

    epochs = options.epochs or (20 if options.quick else None)
    if options.tool == REFERENCE:
        return reference_curve(epochs, seed=options.seed)
    return our_curve(options.setting, epochs=6 if options.quick else None, seed=options.seed)


PARTS = {"step": step, "usage": usage, "held_out": held_out}


def child(part: str, options: argparse.Namespace, **more: Any) -> Any:
    """Measure one part in its own process."""
    given = {key: value for key, value in (vars(options) | more).items() if value is not None}
    flags = [
        f"--{key.replace('_', '-')}={value}"
        for key, value in given.items()
        if not isinstance(value, bool)
    ]
    flags += [f"--{key}" for key, value in given.items() if value is True and key != "write"]
    run = [sys.executable, "-W", "ignore", __file__, *flags, f"--part={part}"]
    done = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True, env=one_thread())
    return json.loads(done.stdout.splitlines()[-1])


def one_thread() -> dict[str, str]:
    """Return the environment of a process with one thread."""
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def import_seconds(modules: str) -> float:
    """Processor time of an import in a fresh process."""
    code = f"import time\nimport {modules}\nprint(time.process_time())"
    run = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True, env=one_thread())
    return float(done.stdout.splitlines()[-1])


def best_and_when(curve: list[tuple[float, float]], goal: float) -> tuple[float, float, float]:
    """Return best and last value of a curve, and the time at which it reaches the goal."""
    reached = [when for when, value in curve if value <= goal]
    values = [value for _, value in curve]
    return min(values), values[-1], reached[0] if reached else float("nan")


def held_out_rows(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure the curves of held-out ELBO; return rows of the table."""
    reference = child("held_out", options, tool=REFERENCE)
    goal = min(value for _, value in reference)
    rows: dict[str, dict[str, float]] = {}
    curves = {REFERENCE: reference} | {
        setting: child("held_out", options, tool=OURS, setting=setting)
        for setting in ("fast", "separated")
    }
    for name, curve in curves.items():
        best, last, when = best_and_when(curve, goal)
        for label, value in (
            ("best held-out -ELBO", best),
            ("last held-out -ELBO", last),
            ("s to the reference's best", when),
            ("s of the whole run", curve[-1][0]),
        ):
            rows.setdefault(label, {})[name] = value
    # The column "ours" is the fast schedule; the preset has its own rows.
    table = {label: {REFERENCE: r[REFERENCE], OURS: r["fast"]} for label, r in rows.items()}
    return table | {
        f"{label} (separated)": {REFERENCE: r[REFERENCE], OURS: r["separated"]}
        for label, r in rows.items()
    }


def measure(options: argparse.Namespace) -> pd.DataFrame:
    """Measure everything; one row per quantity, median over repeats."""
    collected: dict[str, dict[str, list[float]]] = {}

    def add(row: str, tool: str, value: float) -> None:
        collected.setdefault(row, {}).setdefault(tool, []).append(value)

    for repeat in range(1 if options.quick else options.repeats):
        for label, row in child("step", options).items():
            for tool, value in row.items():
                add(label, tool, value)
        for tool in TOOLS:
            for label, value in child("usage", options, tool=tool).items():
                add(label, tool, value)
            add("s import", tool, import_seconds(IMPORTS[tool]))
        add("s import", "torch, pyro, anndata", import_seconds(IMPORTS["torch, pyro, anndata"]))
        print(f"repeat {repeat} done", flush=True)
    for label, row in held_out_rows(options).items():
        for tool, value in row.items():
            add(label, tool, value)
    medians = {row: {t: float(np.median(v)) for t, v in c.items()} for row, c in collected.items()}
    table = pd.DataFrame(medians).T
    more = [row in MORE_IS_BETTER for row in table.index]
    ratio = table[REFERENCE] / table[OURS]
    table["times better"] = ratio.where(~np.array(more), 1 / ratio)
    return table


def main() -> None:
    """Measure one part if it is named, otherwise everything; print the result."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("cells", 10_000), ("genes", 2_000), ("batch-size", 128)):
        made.add_argument(f"--{name}", type=int, default=default)
    made.add_argument("--density", type=float, default=0.1)
    made.add_argument("--repeats", type=int, default=2)
    made.add_argument("--epochs", type=int, help="epochs of scvi-tools' run; default: its own")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--quick", action="store_true")
    made.add_argument("--write", action="store_true", help="save the table in benchmarks/results")
    made.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    made.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    made.add_argument("--setting", help=argparse.SUPPRESS)
    made.add_argument("--counts", help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.part is not None:
        print(json.dumps(PARTS[options.part](options)))
        return
    with TemporaryDirectory() as folder:  # another process simulates: its memory must not count
        options.counts = str(Path(folder) / "counts.h5ad")
        sizes = [str(size) for size in (options.cells, options.genes, options.density)]
        code = "import sys; from common import simulated; "
        code += "c, g, d, to = sys.argv[1:]; simulated(int(c), int(g), float(d)).write_h5ad(to)"
        subprocess.run([sys.executable, "-c", code, *sizes, options.counts], check=True, cwd=HERE)
        table = measure(options)
    packages = ", ".join(f"{n} {version(n)}" for n in ("pyro-contrastive", "torch", "scvi-tools"))
    machine = f"{cpu_name()}, 1 thread of {os.cpu_count()}"
    text = f"{date.today()}\n{machine}\n{packages}\n{table.to_string(float_format='{:.3g}'.format)}"
    print(text)
    if options.write:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / f"bench-{date.today()}.txt").write_text(text + "\n")


def cpu_name() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
