"""Time and memory for tens of millions of cells on many GPUs, computed from what can be measured.

    python benchmarks/scaling_plan.py [--cells 20000 --genes 2000 --density 0.1] [--quick]

1. Measured on this machine, with one thread: the time of a step by the size of its mini-batch,
   cells a second from memory and from an .h5ad file, bytes per cell, and numbers in the gradient.
2. Assumed: what a GPU and its network can do (`GPU`), and how far our steps stay from that (`GPU`'s
   `times_floor` and `fixed`). None of this has been measured with this library: change the numbers,
   and the tables follow.
3. Computed: a step takes as long as its arithmetic or as fetching its cells, whichever is longer,
   because cells are read ahead; then the gradients are added up, which nothing hides. The same
   formulas are first held against what was measured on this machine.

``SCALING.md`` has the tables, and what follows from them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from common import arguments_of_data, show, simulated, start
from profile_step import ARRAYS, floor, recorded
from step import our_run

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.cells import X
from pyro_contrastive.data import open_on_disk
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.training.blocks import BlockBatches
from pyro_contrastive.training.plan import default_max_epochs
from pyro_contrastive.training.splits import PairedBatches, Population

N_HIDDEN = 128
PRODUCTS = 10
"""Products with matrices of genes x hidden units in a step on a GPU, as in `profile_step`."""
BYTES = 4


@dataclass(frozen=True)
class Machine:
    """What one device and its connections can do.

    Parameters
    ----------
    operations, bandwidth
        Operations and bytes per second.
    times_floor
        By what factor a step takes longer than these allow.
    fixed
        Seconds of every step that do not depend on its cells.
    memory
        Bytes on the device; counts may fill half of it.
    from_host
        Bytes per second to the device.
    per_node
        Devices that share a machine.
    inside, between
        Bytes per second at which gradients are added up, inside a machine and between machines.
    latency_inside, latency_between
        Seconds that adding up takes at least.
    disk
        Bytes per second that the processes of a machine can read together.
    """

    operations: float
    bandwidth: float
    times_floor: float
    fixed: float
    memory: float = 0.0
    from_host: float = float("inf")
    per_node: int = 8
    inside: float = float("inf")
    between: float = float("inf")
    latency_inside: float = 0.0
    latency_between: float = 0.0
    disk: float = float("inf")


GPU = Machine(
    operations=50e12,  # an H200 in float32: 67e12 by its data sheet
    bandwidth=4e12,  # 4.8e12 by its data sheet
    times_floor=3.0,  # the goal of benchmarks/gpu.py
    fixed=0.3e-3,  # about a hundred kernels in a CUDA graph
    memory=141e9,
    from_host=25e9,  # PCIe 5 x 16, pageable memory
    inside=150e9,  # NCCL on NVLink, for some megabytes
    between=20e9,  # one 400 Gbit/s adapter per GPU, for some megabytes
    latency_inside=40e-6,
    latency_between=150e-6,
    disk=10e9,  # two NVMe drives
)


@dataclass(frozen=True)
class Measured:
    """What was measured on this machine with one thread.

    Parameters
    ----------
    n_genes
        Genes of the cells.
    n_numbers
        Numbers in the gradient.
    in_memory, on_disk
        Bytes per cell.
    from_memory, from_disk
        Cells per second that are fetched.
    step
        Seconds of a step by the cells of each population in it.
    """

    n_genes: int
    n_numbers: int
    in_memory: float
    on_disk: float
    from_memory: float
    from_disk: float
    step: dict[int, float]


def measure(options: Namespace, sizes: Iterable[int]) -> Measured:
    """Measure steps, fetching and sizes."""
    adata = simulated(options.cells, options.genes, options.density)
    n_steps = 3 if options.quick else 30
    step = {n: recorded(our_run(adata, n), time.process_time, n_steps) / 1e3 for n in sizes}
    run = our_run(adata, options.batch_size)
    counts = adata.X.tocsr()
    stored = counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cells.h5ad"
        adata.write_h5ad(file)
        from_disk, on_disk = _fetched(open_on_disk(file), options.batch_size), file.stat().st_size
    return Measured(
        n_genes=adata.n_vars,
        n_numbers=sum(p.numel() for p in run.vae.parameters()),
        in_memory=stored / adata.n_obs,
        on_disk=on_disk / adata.n_obs,
        from_memory=_fetched(adata, options.batch_size),
        from_disk=from_disk,
        step=step,
    )


def _fetched(adata: AnnData, batch_size: int) -> float:
    """Return how many cells per second of processor time are fetched in an epoch's order."""
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    data = Setup.of(adata).extract(adata)
    cells = Population(np.flatnonzero(data.condition == 0), np.flatnonzero(data.condition != 0))
    rng, source = np.random.default_rng(0), data.observed[X]
    is_stored = hasattr(source, "cells_at_a_time")
    batches = (
        BlockBatches(source, cells, batch_size, rng)  # type: ignore[arg-type]  # is_stored
        if is_stored
        else PairedBatches(cells, batch_size, rng)
    )
    begun = time.process_time()
    n_cells = sum(len(batch.condition) for batch in data.batches(batches.epoch()))
    return n_cells / (time.process_time() - begun)


def arithmetic(machine: Machine, size: int, n_genes: int) -> float:
    """Seconds of the arithmetic of a step with `size` cells of each population."""
    entries = 2 * size * n_genes
    operations = 2 * entries * N_HIDDEN * PRODUCTS
    traffic = ARRAYS * 2 * BYTES * entries  # read and written
    least = operations / machine.operations + traffic / machine.bandwidth
    return machine.fixed + machine.times_floor * least


def exchange(machine: Machine, n_numbers: int, n_devices: int) -> float:
    """Seconds in which the gradients of all devices are added up: twice through a ring."""
    if n_devices == 1:
        return 0.0
    is_inside = n_devices <= machine.per_node
    speed = machine.inside if is_inside else machine.between
    latency = machine.latency_inside if is_inside else machine.latency_between
    return latency + 2 * (n_devices - 1) / n_devices * BYTES * n_numbers / speed


def planned(found: Measured, machine: Machine, n_cells: int, n_devices: int, size: int) -> Any:
    """Compute one row of the plan."""
    together = min(n_devices, machine.per_node)
    # Every process has all cells, so that each device would hold all of them, too.
    is_resident = found.in_memory * n_cells <= machine.memory / 2
    from_disk = min(found.from_disk, machine.disk / found.on_disk / together)
    rate = float("inf") if is_resident else min(from_disk, machine.from_host / found.in_memory)
    times = {
        "arithmetic": arithmetic(machine, size, found.n_genes),
        "cells": 2 * size / rate,
        "exchange": exchange(machine, found.n_numbers, n_devices),
    }
    # Cells are read ahead; nothing hides the exchange.
    seconds = max(times["arithmetic"], times["cells"]) + times["exchange"]
    steps = -(-n_cells // (2 * size * n_devices))
    n_epochs = default_max_epochs(n_cells, "fast", steps)
    return {
        "counts": "GPU" if is_resident else "disk",
        "GPUs": n_devices,
        "mini-batch": size,
        "step, ms": f"{1e3 * seconds:.2f}",
        "longest": max(times, key=times.__getitem__),
        "1,000 cells/s": f"{2e-3 * size * n_devices / seconds:,.0f}",
        "steps/epoch": f"{steps:,}",
        "min/epoch": f"{steps * seconds / 60:.2f}",
        "fast, min": f"{n_epochs * steps * seconds / 60:.2f}",
    }


def held_against(found: Measured, options: Namespace) -> tuple[pd.DataFrame, float]:
    """Compare the formula with the steps measured here: two of them fix what it does not know.

    Returns
    -------
    The comparison, and the seconds of a step that do not depend on its cells.
    """
    unit = floor(Namespace(**(vars(options) | {"batch_size": 128}))).sum() / 1e3 / 128
    first, *_, last = found.step
    per_cell = (found.step[last] - found.step[first]) / (last - first)
    fixed = found.step[first] - first * per_cell
    rows = [
        {
            "mini-batch": size,
            "measured, ms": 1e3 * seconds,
            "formula, ms": 1e3 * (fixed + size * per_cell),
            "times the floor": seconds / (unit * size),
        }
        for size, seconds in found.step.items()
    ]
    print(f"\nA step: {1e3 * fixed:.2f} ms, and {per_cell / unit:.2f} times the floor of its cells")
    return pd.DataFrame(rows).set_index("mini-batch"), fixed


def main() -> None:
    """Measure, compare, and print the plan."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments_of_data(made)
    made.set_defaults(cells=20_000)
    made.add_argument("--quick", action="store_true")
    options = made.parse_args()
    start(options)
    found = measure(options, (64, 128) if options.quick else (64, 128, 512, 2048))
    facts = {name: value for name, value in vars(found).items() if name != "step"}
    show("Measured with one thread", pd.Series(facts).to_frame("value"), digits=0)
    steps, fixed = held_against(found, options)
    show("Steps", steps, digits=2)
    print(f"\nAssumed: {GPU}")
    for title, machine in (
        ("with recorded steps as CUDA graphs", GPU),
        ("if every step costs as much beside its arithmetic as here", replace(GPU, fixed=fixed)),
    ):
        for n_cells in (10**7, 10**8):
            rows = [
                planned(found, machine, n_cells, n_devices, size)
                for size in (128, 1024, 4096)
                for n_devices in (1, 8, 64)
            ]
            print(f"\n{n_cells:,} cells x {options.genes:,} genes, {title}")
            print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
