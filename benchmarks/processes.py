"""Cells per second of one process and of several that train together, measured alternately.

    OMP_NUM_THREADS=1 python benchmarks/processes.py [--processes 2 --cells 20000 --genes 2000
        --density 0.1 --batch-size 128 --turns 3] [--penalties]

Every process has one thread. The same epochs are trained by one process and by several, turn by
turn, with `batch_size` cells of each population per process and step. Two ratios are printed:

* by wall time, what a user sees, if the machine has a quiet core for every process;
* by processor time, on a busy machine: the number of processes times the processor time that one
  alone takes for its cells, divided by what each of several takes. It contains the exchange and the
  memory bandwidth that they share, but not the time in which a process waits for another.

``--copy`` also measures how well the machine runs that many processes at all: how fast several copy
memory at the same time, relative to one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from common import arguments_of_data, simulated

from pyro_contrastive import HSIC, MMD, ContrastiveVI, settings
from pyro_contrastive.training import launch, run

assert launch  # imported before processes are forked: it takes seconds
Found = list[tuple[float, float]]
"""Seconds of wall time and of processor time."""


def in_processes(n: int, act: Callable[[], Any]) -> list[Any]:
    """Return what each of n forked processes returns."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def child(rank: int) -> None:
        torch.set_num_threads(1)
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": n}
        os.environ.update({k: str(v) for k, v in (address | {"LOCAL_RANK": rank}).items()})
        queue.put(act())

    children = [context.Process(target=child, args=(rank,)) for rank in range(n)]
    for process in children:
        process.start()
    found = [queue.get() for _ in children]
    for process in children:
        process.join()
    return found


def epochs(adata: AnnData, n: int, batch_size: int, *, penalties: bool) -> Found:
    """Train with n processes; return the times of each epoch but the first."""
    times: Found = []
    original = run.Run.train_epoch

    def train_epoch(self: run.Run, epoch: int) -> Any:
        begun = time.perf_counter(), time.process_time()
        found = original(self, epoch)
        times.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
        return found

    run.Run.train_epoch = train_epoch  # type: ignore[method-assign]
    settings.seed = 0
    model = ContrastiveVI(adata, penalties=[MMD(), HSIC()] if penalties else [])
    model.train(
        max_epochs=3,
        batch_size=batch_size,
        accelerator="cpu",
        devices=n,
        seed=0,
        check_val_every_n_epoch=None,
        enable_progress_bar=False,
    )
    return times[1:]


def copies() -> Found:
    """Copy 256 MB 20 times; return the times of each copy."""
    source, times = np.ones(2**25), []
    target = np.empty_like(source)
    for _ in range(20):
        begun = time.perf_counter(), time.process_time()
        np.copyto(target, source)
        times.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    return times


def compare(one: list[Found], several: list[Found], n: int, what: str) -> None:
    """Print by what factor n processes do more than one in the same time."""
    for kind, name in enumerate(("wall time", "processor time")):
        alone, each = (
            np.median([times[kind] for process in found for times in process])
            for found in (one, several)
        )
        print(f"{what}, {n} processes / 1, by {name}: {n * alone / each:.2f}")


def main() -> None:
    """Measure one process and several, turn by turn."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments_of_data(parser)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--penalties", action="store_true", help="with MMD and HSIC")
    parser.add_argument("--copy", action="store_true", help="measure memory bandwidth too")
    options = parser.parse_args()
    adata = simulated(options.cells, options.genes, options.density)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    n = options.processes

    def measured(size: int) -> list[Found]:
        return in_processes(
            size, lambda: epochs(adata, size, options.batch_size, penalties=options.penalties)
        )

    one: list[Found] = []
    several: list[Found] = []
    for _ in range(options.turns):
        one.extend(measured(1))
        several.extend(measured(n))
    # An epoch of several has as many cells in all: each process has its share of them.
    whole = [[(a / n, b / n) for a, b in process] for process in one]
    compare(whole, several, n, "cells/s")
    cells = 0.9 * adata.n_obs
    walls = [np.median([wall for p in found for wall, _ in p]) for found in (one, several)]
    print(f"cells/s by wall time: {cells / walls[0]:,.0f} and {cells / walls[1]:,.0f}")
    if options.copy:
        compare(in_processes(1, copies), in_processes(n, copies), n, "bytes/s copied")


if __name__ == "__main__":
    main()
