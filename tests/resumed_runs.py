"""Runs of training to be interrupted and continued, and all that depends on how they end."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from training_helpers import make_adata, make_model, weights

from pyro_contrastive import ContrastiveVI, LateSalient, Penalty, TotalCorrelation, VampPrior

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


def begin(name: str) -> tuple[ContrastiveVI, dict[str, Any]]:
    parts, arguments = RUNS[name]
    model = make_model(make_adata(*N_CELLS), **{k: v() for k, v in parts.items()})
    return model, {"max_epochs": 5, "batch_size": 8, "seed": 3} | arguments
