"""Cells per second of one process and of several that train together, measured alternately.

    OMP_NUM_THREADS=1 python benchmarks/processes.py [--processes 2 --cells 20000 --genes 2000
        --density 0.1 --batch-size 128 --turns 3]

Every process has one thread. The same epochs are trained by one process and by several, turn by
turn, with `batch_size` cells of each population per process and step. Two ratios are printed:

* by wall time, what a user sees, if the machine has a quiet core for every process;
* by processor time, on a busy machine: the number of processes times the processor time that one
  alone takes for its cells, divided by what each of several takes. It contains the exchange and the
  memory bandwidth that they share, but not the time in which a process waits for another.

The same two ratios follow for processes that run at the same time and train apart, each a model of
its own: what the machine allows, with its memory bandwidth. Last comes the share of a process's
processor time that the exchange takes, in the same process, which varies least.
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

from pyro_contrastive import ContrastiveVI, settings
from pyro_contrastive.training import launch, run
from pyro_contrastive.training.exchange import Exchange

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


def epochs(adata: AnnData, n: int, batch_size: int) -> tuple[Found, float]:
    """Train with n processes; return the times of epochs, and the share of the exchange."""
    times: Found = []
    exchanged = [0.0]
    train_epoch, share = run.Run.train_epoch, Exchange.__call__

    def timed_epoch(self: run.Run, epoch: int) -> Any:
        begun = time.perf_counter(), time.process_time()
        found = train_epoch(self, epoch)
        times.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
        return found

    def timed_share(self: Exchange, *args: Any) -> Any:
        begun = time.process_time()
        found = share(self, *args)
        exchanged[0] += time.process_time() - begun
        return found

    run.Run.train_epoch = timed_epoch  # type: ignore[method-assign]
    Exchange.__call__ = timed_share  # type: ignore[method-assign]
    settings.seed = 0
    ContrastiveVI(adata).train(
        max_epochs=3,
        batch_size=batch_size,
        accelerator="cpu",
        devices=n,
        seed=0,
        check_val_every_n_epoch=None,
        enable_progress_bar=False,
    )
    return times[1:], exchanged[0] / sum(processor for _, processor in times)


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
    options = parser.parse_args()
    adata = simulated(options.cells, options.genes, options.density)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    n = options.processes
    one: list[Found] = []
    apart: list[Found] = []
    together: list[Found] = []
    shares: list[float] = []
    for _ in range(options.turns):
        for found, size, devices in ((one, 1, 1), (apart, n, 1), (together, n, n)):
            for times, share in in_processes(
                size, lambda devices=devices: epochs(adata, devices, options.batch_size)
            ):
                found.append(times)
                if devices > 1:
                    shares.append(share)
    compare(one, apart, n, "apart, cells/s")
    # An epoch of several has as many cells in all: each process has its share of them.
    per_share = [[(a / n, b / n) for a, b in process] for process in one]
    compare(per_share, together, n, "together, cells/s")
    walls = [np.median([wall for p in found for wall, _ in p]) for found in (one, together)]
    rates = [0.9 * adata.n_obs / wall for wall in walls]
    print(f"cells/s by wall time: {rates[0]:,.0f} and {rates[1]:,.0f}")
    print(f"share of the exchange in a process's processor time: {np.median(shares):.3f}")


if __name__ == "__main__":
    main()
