"""Run a function in several processes that train together, which are copies of this one."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def in_processes(
    folder: Path, act: Callable[[int], Any], n: int = 2, seconds: float = 60.0
) -> list[Any]:
    """Return what each process returned, or the exception that it raised; ``None`` if killed.

    Processes are forked, because torch, Pyro and Lightning take seconds to import. They are killed,
    and the test fails, if they are still running after some seconds.
    """
    port = free_port()
    children = []
    for rank in range(n):
        with warnings.catch_warnings():
            # torch has threads of its own, which are idle here.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            _run(folder / f"{rank}.pickle", act, rank, n, port)
        children.append(child)
    left, last = set(children), time.monotonic() + seconds
    while left and time.monotonic() < last:
        left -= {child for child in left if os.waitpid(child, os.WNOHANG)[0]}
        time.sleep(0.01)
    for child in left:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not left, f"{len(left)} processes were still running after {seconds} seconds"
    files = [folder / f"{rank}.pickle" for rank in range(n)]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


def _run(file: Path, act: Callable[[int], Any], rank: int, n: int, port: int) -> None:
    try:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": n}
        os.environ.update({k: str(v) for k, v in (address | {"LOCAL_RANK": rank}).items()})
        try:
            found = act(rank)
        except BaseException as error:
            traceback.print_exc()
            found = RuntimeError(f"{type(error).__name__}: {error}")
        file.write_bytes(pickle.dumps(found))
    finally:
        os._exit(0)
