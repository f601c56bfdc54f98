"""Kill processes that train, at random moments, and continue them. Run as a script.

Each training is in a child of this process, which itself only imports: torch cannot train in the
child of a process that has trained.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from resumed_runs import RUNS, begin, seen_by
from training_helpers import train

from pyro_contrastive.saving.checkpoint_files import all_in
from pyro_contrastive.training import steps

N_KILLS = 20


def train_to_the_end(name: str, folder: Path) -> None:
    """Begin a run, or continue it, and write down how it ends."""
    torch.manual_seed(1)
    random.seed(1)  # a forked process has another state
    model, arguments = begin(name)
    resume = folder if all_in(folder) else None
    arguments |= {"max_epochs": 12, "checkpoint": folder, "checkpoint_every_n_epochs": 1}
    train(model, **arguments, resume=resume)
    end = seen_by(model, has_seed=arguments["seed"] is not None)
    hashes = {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in end.items()}
    hashes["history"] = repr(model._history.to_json())
    (folder.parent / f"{folder.name}.json").write_text(json.dumps(hashes, sort_keys=True))


def in_child(name: str, folder: Path, seconds: float | None = None) -> bool:
    """Train in a child; kill it after so many seconds; return whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            train_to_the_end(name, folder)
        finally:
            sys.stderr.flush()
            os._exit(0 if (folder.parent / f"{folder.name}.json").exists() else 1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert status == 0, "training failed"
    return False


def main(place: Path) -> None:
    """Print how many runs were killed in training and ended as the uninterrupted one."""
    steps.RECORDED_AFTER = 3
    draws = random.Random(0)
    n_killed = n_tries = 0
    whole: dict[str, tuple[dict[str, str], float]] = {}
    names = [name for name in RUNS if name != "own optimiser"]
    while n_killed < N_KILLS:
        n_tries += 1
        assert n_tries <= 4 * N_KILLS, "too few kills came in time"
        name = names[n_tries % len(names)]
        if name not in whole:
            begun = time.perf_counter()
            in_child(name, place / "whole")
            took = time.perf_counter() - begun
            whole[name] = json.loads((place / "whole.json").read_text()), took
            shutil.rmtree(place / "whole")
            (place / "whole.json").unlink()
        end, took = whole[name]
        folder = place / f"run_{n_tries}"
        was_killed = in_child(name, folder, draws.uniform(0.05, 1.0) * took)
        n_before = len(all_in(folder))
        in_child(name, folder, draws.uniform(0.05, 1.0) * took)  # while it is continued, too
        in_child(name, folder)
        found = json.loads((place / f"{folder.name}.json").read_text())
        differ = [key for key in end if found[key] != end[key]]
        assert not differ, f"{name}, {folder}: {differ}"
        assert len(all_in(folder)) <= 3, "more checkpoints than are kept"
        assert not list(folder.glob(".*")), "something is left of a killed writer"
        n_killed += was_killed and n_before > 0
        shutil.rmtree(folder)
    print(n_killed, "kills,", n_tries, "runs")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
