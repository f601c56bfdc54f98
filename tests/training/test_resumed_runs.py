"""A run that is continued from a checkpoint ends as the uninterrupted one, bit for bit."""

from __future__ import annotations

import random
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import make_adata, make_model, train, weights

from pyro_contrastive import ContrastiveVI, LateSalient, Penalty, TotalCorrelation, VampPrior
from pyro_contrastive.saving import checkpoints
from pyro_contrastive.training import steps

N_CELLS = 24, 30


class Noisy(Penalty):
    """Draws from the global generators of NumPy and Python, so that no step can be recorded."""

    def forward(self, model_trace: Any, guide_trace: Any, batch: Any) -> torch.Tensor:
        return guide_trace.nodes["s"]["value"].mean() * np.random.rand() * random.random()  # noqa: NPY002


def adam_and_a_scale(parameters: Any) -> torch.optim.Optimizer:
    """Make an optimiser with a parameter that is not the model's."""
    other = torch.nn.Parameter(torch.ones(2))
    return torch.optim.AdamW([*parameters, other], lr=0.01, amsgrad=True)


def seen_by(model: ContrastiveVI, *, has_seed: bool) -> dict[str, torch.Tensor]:
    """Everything that the next call of anything could depend on.

    A run with a seed leaves torch's global random state alone.
    """
    first = {f"first {k}": v for k, v in model._untrained_module.state_dict().items()}
    numbers = {
        "torch": torch.empty(0) if has_seed else torch.get_rng_state(),
        "numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64)),  # noqa: NPY002
        "python": torch.tensor(random.getstate()[1][:-1]),
        "train": torch.from_numpy(model.train_indices),
        "held out": torch.from_numpy(model.held_out_indices),
    }
    return weights(model) | first | numbers


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "unseeded": ({}, {"seed": None}),
    "not recorded": ({}, {"plan_kwargs": {"record_steps": False}}),
    "fast": ({}, {"schedule": "fast", "early_stopping": True}),
    "stops early": (
        {},
        {
            "early_stopping": True,
            "early_stopping_patience": 2,
            "early_stopping_min_delta": 1e9,
            "plan_kwargs": {"n_epochs_kl_warmup": 1},
        },
    ),
    "plateau": (
        {},
        {
            "plan_kwargs": {
                "reduce_lr_on_plateau": True,
                "lr_patience": 1,
                "lr_scheduler_metric": "elbo_train",
                "lr_threshold": 50.0,
            }
        },
    ),
    "own optimiser": (
        {},
        {"plan_kwargs": {"optimizer": "Custom", "optimizer_creator": adam_and_a_scale}},
    ),
    "penalties with parameters": (
        {"penalties": lambda: [TotalCorrelation(1.0, 3, 2, n_hidden=4), LateSalient(1.0, 20)]},
        {},
    ),
    "priors that learn": ({"background_prior": lambda: VampPrior(10, 4)}, {}),
    "code that is not recorded": ({"penalties": lambda: [Noisy(1.0)]}, {}),
}

QUICK = {"fast", "stops early", "penalties with parameters", "code that is not recorded"}


def begin(name: str) -> tuple[ContrastiveVI, dict[str, Any]]:
    parts, arguments = RUNS[name]
    model = make_model(make_adata(*N_CELLS), **{k: v() for k, v in parts.items()})
    return model, {"max_epochs": 5, "batch_size": 8, "seed": 3} | arguments


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
