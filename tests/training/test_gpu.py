"""Training and questions on a GPU: skipped where there is none; ``benchmarks/gpu.py`` runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import make_adata, make_model, train, weights

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.data.resident import on_device_if_it_fits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
GPU: dict[str, Any] = {"accelerator": "gpu", "seed": 0, "max_epochs": 3}


def made(**kwargs: Any) -> ContrastiveVI:
    torch.manual_seed(0)
    return make_model(make_adata(200, 300), **kwargs)


def elbo(model: ContrastiveVI) -> float:
    return float(model.history["elbo_validation"].iloc[-1, 0])


def test_counts_that_fit_are_kept_on_the_device() -> None:
    model = made()
    data = model._data(None)
    kept = on_device_if_it_fits(data, torch.device("cuda"), torch.float32)
    rows = np.array([3, 1, 250])
    batch = kept.cells(rows, torch.device("cuda"), torch.float32)
    assert batch.x.device.type == "cuda"
    expected = np.asarray(model.adata.X[rows].todense(), dtype=np.float32)
    np.testing.assert_array_equal(batch.x.cpu().numpy(), expected)


def test_recorded_steps_are_as_good_as_plain_ones_and_as_those_of_a_cpu() -> None:
    """They draw other noise than a processor, so that only the level can agree."""
    held_out = {}
    for name, arguments in {
        "recorded": GPU,
        "plain": GPU | {"plan_kwargs": {"record_steps": False}},
        "cpu": GPU | {"accelerator": "cpu"},
    }.items():
        model = made()
        train(model, **(arguments | {"max_epochs": 30}))
        held_out[name] = elbo(model)
    assert held_out["recorded"] == pytest.approx(held_out["plain"], rel=1e-3)
    assert held_out["recorded"] == pytest.approx(held_out["cpu"], rel=0.03)


def test_the_same_seed_gives_the_same_fit() -> None:
    first, again = made(), made()
    for model in (first, again):
        train(model, **GPU)
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(again)[name], value, rtol=1e-4, atol=1e-5)


def test_half_precision_trains() -> None:
    single, half = made(), made()
    train(single, **(GPU | {"max_epochs": 20}))
    train(half, precision="bf16-mixed", **(GPU | {"max_epochs": 20}))
    assert elbo(half) == pytest.approx(elbo(single), rel=0.02)


@pytest.mark.parametrize("schedule", ["fast", "reference"])
def test_a_preset_trains(schedule: str) -> None:
    adata = make_adata(200, 300)
    model = ContrastiveVI.from_preset(adata, "separated")
    train(model, schedule=schedule, **GPU)
    assert np.isfinite(elbo(model))


def test_every_question_is_answered_on_the_device() -> None:
    model = made()
    train(model, **GPU)
    model.to_device("cuda:0")
    on_gpu = model.get_latent_representation(representation_kind="background")
    effect = model.get_treatment_effect(n_samples=39, seed=0, silent=True)
    assert np.isfinite(effect["mean"].to_numpy()).all()
    genes = model.differential_expression(mode="means", strata=2, seed=0, silent=True)
    assert len(genes) == model.adata.n_vars
    assert np.isfinite(model.get_marginal_ll(indices=range(10), n_mc_samples=20, seed=0))
    model.to_device("cpu")
    on_cpu = model.get_latent_representation(representation_kind="background")
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-3, atol=1e-4)


def test_a_model_trained_on_a_gpu_is_loaded_on_a_cpu(tmp_path: Path) -> None:
    model = made()
    train(model, **GPU)
    model.save(tmp_path / "model")
    loaded = ContrastiveVI.load(tmp_path / "model", model.adata, accelerator="cpu")
    assert loaded.device.type == "cpu"
    for name, value in weights(model).items():
        assert torch.equal(loaded.module.state_dict()[name], value.cpu()), name


def test_training_goes_on_where_it_ended() -> None:
    """The optimiser of a second call is on the device of the weights."""
    model = made()
    train(model, **GPU)
    train(model, **GPU)
    assert len(model.history["elbo_train"]) == 6
