"""Early stopping: which epochs it checks, what it restores, what it refuses."""

from __future__ import annotations

from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from training_helpers import column, make_adata, make_model, same, split_of_seed, train, weights

from pyro_contrastive.training import EarlyStopping, progress
from pyro_contrastive.training.evaluate import evaluate


def test_early_stopping_puts_back_the_best_weights():
    model = make_model(make_adata(40, 40))
    # With a learning rate this high the loss jumps, so the last epoch is not the best one.
    warmup = 10  # a quarter of 40 epochs
    result = train(
        model,
        40,
        early_stopping=True,
        early_stopping_patience=3,
        train_size=0.5,
        batch_size=8,
        plan_kwargs={"lr": 0.1},
        seed=3,
    )
    elbo = column(model, "elbo_validation")
    assert result.stopped_early
    assert result.n_epochs == len(elbo) < 40
    assert np.argmin(elbo[warmup:]) + warmup == len(elbo) - 4  # three checks without improvement
    assert (result.max_epochs, result.best_epoch) == (40, len(elbo) - 4)
    assert result.reason == "elbo_validation has not improved for 3 checks"
    split = split_of_seed(model, seed=3, train_size=0.5)
    found = evaluate(model.module, model._data(None), split.validation, 8, "cpu")
    elbo_now = found["reconstruction_loss"] + found["kl_z"] + found["kl_s"]
    assert elbo_now == elbo[warmup:].min()
    assert not model.module.training


def test_the_bar_says_that_the_rest_will_not_come(monkeypatch):
    drawn = StringIO()
    monkeypatch.setattr(
        progress,
        "Progress",
        lambda *columns, disable: Progress(
            *columns, disable=disable, console=Console(file=drawn, width=100, force_terminal=True)
        ),
    )
    model = make_model()
    shown = {"enable_progress_bar": True, "early_stopping": True, "early_stopping_patience": 1}
    steep = {"early_stopping_min_delta": 1e9, "plan_kwargs": {"n_epochs_kl_warmup": 0}}
    result = train(model, 40, **shown, **steep)
    assert result.n_epochs == 2
    assert "Epoch 2/40" in drawn.getvalue()
    assert f"stopped early, back to epoch {result.best_epoch} (counted from 0)" in drawn.getvalue()


STEEP: dict[str, Any] = {"plan_kwargs": {"lr": 0.3}, "batch_size": 8, "train_size": 0.5, "seed": 3}


def held_out_elbo(model, seed: int = 3) -> float:
    split = split_of_seed(model, seed=seed, train_size=0.5)
    found = evaluate(model.module, model._data(None), split.validation, 8, "cpu")
    return found["reconstruction_loss"] + found["kl_z"] + found["kl_s"]


def test_the_fast_schedule_puts_back_the_best_weights_by_itself(tmp_path):
    model = make_model(make_adata(40, 40))
    result = train(model, 30, schedule="fast", **STEEP)
    elbo = column(model, "elbo_validation")
    assert result.best_epoch == np.argmin(elbo[3:]) + 3 < 29  # the learning rate rises in 3 epochs
    assert held_out_elbo(model) == elbo[result.best_epoch] < elbo[-1]
    assert model.history["restored"].index.tolist() == [result.best_epoch]
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    assert loaded.history["restored"].index.tolist() == [result.best_epoch]
    train(model, 2, early_stopping=False, schedule="fast")
    assert "restored" not in model.history  # the weights are those of the last epoch


@pytest.mark.slow
def test_the_fast_schedule_can_keep_the_last_weights():
    model = make_model(make_adata(40, 40))
    result = train(model, 30, schedule="fast", early_stopping=False, **STEEP)
    assert result.best_epoch is None
    assert "restored" not in model.history
    assert held_out_elbo(model) == column(model, "elbo_validation")[-1]
    assert train(make_model(), 30).best_epoch is None  # as scvi-tools


@pytest.mark.filterwarnings("ignore:There (is|are) only")
@pytest.mark.parametrize(
    "kwargs",
    [{"train_size": 1.0}, {"check_val_every_n_epoch": None}, {"check_val_every_n_epoch": 9}],
)
def test_the_fast_schedule_trains_where_nothing_can_be_checked(kwargs):
    model = make_model()
    result = train(model, 4, schedule="fast", **kwargs)
    assert (result.n_epochs, result.best_epoch) == (4, None)
    assert "restored" not in model.history


def test_a_run_that_comes_to_its_end_has_no_reason():
    result = train(make_model(), 2)
    assert (result.max_epochs, result.best_epoch, result.reason) == (2, None, "")
    stopping = train(make_model(), 4, early_stopping=True)
    assert stopping.reason == ""
    assert stopping.best_epoch in {1, 2, 3}


def test_early_stopping_counts_checks_not_epochs():
    model = make_model()
    result = train(
        model,
        40,
        early_stopping=True,
        early_stopping_patience=2,
        early_stopping_min_delta=1e9,
        check_val_every_n_epoch=3,
        plan_kwargs={"n_epochs_kl_warmup": 0},
    )
    # The first check is always the best so far; the next two do not improve by `min_delta`.
    assert (result.stopped_early, result.n_epochs) == (True, 9)
    assert model.history["elbo_validation"].index.tolist() == [2, 5, 8]
    assert model.history["elbo_train"].index.tolist() == list(range(9))


def test_early_stopping_keeps_the_minimum_whatever_min_delta_is():
    stopping = EarlyStopping("loss", patience=2, min_delta=1.0)
    module = torch.nn.Linear(1, 1)
    for value in (10.0, 9.5, 9.7):
        torch.nn.init.constant_(module.weight, value)
        stopped = stopping.update({"loss": value}, module)
    stopping.restore_best(module)
    assert (stopped, stopping.best, module.weight.item()) == (True, 9.5, 9.5)


def test_early_stopping_can_watch_a_training_quantity_without_held_out_cells():
    result = train(
        make_model(),
        3,
        train_size=1.0,
        early_stopping=True,
        early_stopping_monitor="elbo_train",
        early_stopping_patience=1,
        early_stopping_min_delta=1e9,
        plan_kwargs={"n_epochs_kl_warmup": 0},
    )
    assert (result.stopped_early, result.n_epochs) == (True, 2)


@pytest.fixture
def stoppings(monkeypatch):
    """Record the values that early stopping checked."""
    made: list[tuple[EarlyStopping, dict[str, float]]] = []
    original = EarlyStopping.update

    def update(self: EarlyStopping, values: dict[str, float], *rest: Any) -> bool:
        made.append((self, dict(values)))
        return original(self, values, *rest)

    monkeypatch.setattr(EarlyStopping, "update", update)
    return made


def test_early_stopping_looks_from_the_end_of_the_warm_up_on(stoppings):
    """The loss of an epoch with a low KL weight is low, which does not make it the best."""
    model = make_model(wasserstein_penalty=50.0)
    result = train(
        model,
        20,
        early_stopping=True,
        early_stopping_monitor="train_loss",
        early_stopping_patience=6,
        plan_kwargs={"n_epochs_kl_warmup": 5, "lr": 1e-4},
        batch_size=8,
        seed=0,
    )
    assert {values["kl_weight"] for _, values in stoppings} == {1.0}
    assert len(stoppings) == result.n_epochs - 5
    loss = column(model, "train_loss")
    assert loss[:5].min() < loss[5:].min() == stoppings[-1][0].best


def test_patience_is_not_used_up_in_the_warm_up():
    result = train(
        make_model(),
        20,
        early_stopping=True,
        early_stopping_patience=2,
        early_stopping_min_delta=1e9,
        plan_kwargs={"n_epochs_kl_warmup": 5},
    )
    # The sixth epoch is the first to be checked, so it is the best so far.
    assert (result.stopped_early, result.n_epochs) == (True, 8)


def test_early_stopping_can_wait_longer_than_the_kl_warm_up(stoppings):
    kwargs: dict[str, Any] = {
        "early_stopping": True,
        "early_stopping_patience": 2,
        "early_stopping_min_delta": 1e9,
        "plan_kwargs": {"n_epochs_kl_warmup": 1},
    }
    waited = train(make_model(), 12, early_stopping_warmup_epochs=5, **kwargs)
    # The sixth epoch is the first to be checked, so it is the best so far.
    assert (waited.stopped_early, waited.n_epochs, len(stoppings)) == (True, 8, 3)
    again = train(make_model(), 12, early_stopping_warmup_epochs=0, **kwargs)
    assert again.n_epochs == 4
    with pytest.raises(ValueError, match="leaves early stopping no epoch to check in a run of 5"):
        train(make_model(), 5, early_stopping_warmup_epochs=5, **kwargs)


def test_early_stopping_can_watch_what_is_to_grow():
    stopping = EarlyStopping("score", patience=2, min_delta=0.0, mode="max")
    module = torch.nn.Linear(1, 1)
    for value in (1.0, 3.0, 2.0, 2.5):
        torch.nn.init.constant_(module.weight, value)
        stopped = stopping.update({"score": value}, module)
    stopping.restore_best(module)
    assert (stopped, module.weight.item()) == (True, 3.0)
    kwargs = {"early_stopping": True, "plan_kwargs": {"n_epochs_kl_warmup": 0}}
    result = train(make_model(), 6, early_stopping_mode="max", early_stopping_patience=1, **kwargs)
    assert (result.stopped_early, result.n_epochs) == (True, 2)  # the loss only falls


@pytest.mark.parametrize(
    "plan", [{"n_epochs_kl_warmup": 400}, {"n_steps_kl_warmup": 10**6}, {"n_epochs_kl_warmup": 6}]
)
def test_early_stopping_of_a_run_that_is_all_warm_up_is_refused(plan):
    model = make_model()
    with pytest.raises(ValueError, match="does not end before the last of 6 epochs"):
        train(model, 6, early_stopping=True, plan_kwargs=plan)
    assert not model.history
    train(model, 6, early_stopping=True, plan_kwargs={"n_epochs_kl_warmup": 5})
    train(model, 6, early_stopping=True, plan_kwargs=plan | {"min_kl_weight": 1})


@pytest.mark.filterwarnings("ignore:There (is|are) only")
@pytest.mark.parametrize(
    ("adata_sizes", "kwargs", "message"),
    [
        ((20, 30), {"train_size": 1.0}, "One of the populations has no held-out cells"),
        ((3, 30), {}, "One of the populations has no held-out cells"),
        ((20, 30), {"early_stopping_monitor": "val_loss"}, r"can watch \['elbo_train'"),
        ((20, 30), {"early_stopping_patience": 0}, "early_stopping_patience must be at least 1"),
        ((20, 30), {"early_stopping_min_delta": -1}, "early_stopping_min_delta must be at least 0"),
        ((20, 30), {"early_stopping_mode": "least"}, "mode must be 'min' or 'max'"),
        ((20, 30), {"early_stopping_warmup_epochs": -1}, "warmup_epochs must be at least 0"),
        ((20, 30), {"check_val_every_n_epoch": 0}, "check_val_every_n_epoch must be at least 1"),
    ],
)
def test_early_stopping_that_cannot_work_is_refused_before_training(adata_sizes, kwargs, message):
    model = make_model(make_adata(*adata_sizes))
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        train(model, early_stopping=True, **kwargs)
    assert same(before, weights(model))
    assert not model.history
