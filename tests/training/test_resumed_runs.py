"""A run that is continued from a checkpoint ends as the uninterrupted one, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from resumed_runs import RUNS, begin, seen_by
from training_helpers import train

from pyro_contrastive.saving import checkpoints
from pyro_contrastive.training import steps

QUICK = {"fast", "stops early", "penalties with parameters"}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in RUNS]
)
def test_a_resumed_run_ends_as_the_uninterrupted_one(name, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "N_KEPT", 100)
    monkeypatch.setattr(steps, "RECORDED_AFTER", 3)  # of 4 steps of 2 shapes in an epoch
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    model, arguments = begin(name)
    whole = train(model, **arguments, checkpoint=tmp_path, checkpoint_every_n_epochs=1)
    end, history = seen_by(model, has_seed=name != "unseeded"), model._history.to_json()
    written = {int(path.name.split("_")[1]) for path in tmp_path.iterdir()}
    assert written == set(range(whole.n_epochs + 1))
    for epoch in sorted(written)[1::2]:
        place = tmp_path / f"only_{epoch}"
        shutil.copytree(tmp_path / f"epoch_{epoch}", place / f"epoch_{epoch}")
        torch.manual_seed(77)
        model, arguments = begin(name)  # with other weights
        result = train(model, **arguments, resume=place)
        assert_same(seen_by(model, has_seed=name != "unseeded"), end)
        assert model._history.to_json() == history
        assert result.n_epochs == whole.n_epochs
        assert result.stopped_early == whole.stopped_early == (name == "stops early")
        assert result.best_epoch == whole.best_epoch
        assert result.seconds > 0
        shutil.rmtree(place)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed by forking")
def test_runs_that_are_killed_at_random_moments_end_as_uninterrupted_ones(tmp_path):
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(tests / "killed_training.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20 kills"), done.stdout
