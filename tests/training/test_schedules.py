"""Named schedules of training, and the learning rate that rises and falls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.testing import SimulationSettings, simulate
from pyro_contrastive.training import TrainingPlan, fit, run
from pyro_contrastive.training.plan import MIN_FAST_EPOCHS, SCHEDULES, default_max_epochs

SMALL = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}


def make_model(n_background: int = 20, n_target: int = 30, n_genes: int = 10) -> ContrastiveVI:
    adata = simulate(
        SimulationSettings(n_background=n_background, n_target=n_target, n_genes=n_genes)
    )
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    return ContrastiveVI(adata, **SMALL)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Learning rate of every step taken."""
    seen: list[float] = []
    original = run.Run.train_step

    def train_step(self: run.Run, *args: Any) -> Any:
        seen.append(self.optimizer.optimizer.param_groups[0]["lr"])
        return original(self, *args)

    monkeypatch.setattr(run.Run, "train_step", train_step)
    return seen


def cosine(start: float, end: float, share: float) -> float:
    """Half a wave from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def test_one_cycle_rises_for_a_third_of_the_steps_and_falls_to_nothing(rates) -> None:
    model = make_model()
    # 27 target cells train, 9 at a time: 3 steps an epoch, 30 in all.
    model.train(
        max_epochs=10,
        batch_size=9,
        enable_progress_bar=False,
        seed=0,
        plan_kwargs={"one_cycle": True, "lr": 0.01},
    )
    peak = 31 / 3 - 1  # of 31 steps, counted from 0
    expected = [
        cosine(0.01 / 25, 0.01, step / peak)
        if step <= peak
        else cosine(0.01, 0.01 / 25 / 1e4, (step - peak) / (30 - peak))
        for step in range(30)
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert rates[0] == pytest.approx(4e-4)
    assert max(rates) > 0.0099
    assert rates[-1] < 1e-4


def test_the_rise_takes_the_share_of_the_run_it_is_given(rates) -> None:
    made = {"one_cycle": True, "lr": 0.01, "cycle_rise": 0.2}
    make_model().train(
        max_epochs=30, batch_size=27, enable_progress_bar=False, seed=0, plan_kwargs=made
    )
    peak = 0.2 * 31 - 1  # of 31 steps, counted from 0
    assert rates[5] == pytest.approx(cosine(0.01 / 25, 0.01, 5 / peak))
    assert rates[6] == pytest.approx(cosine(0.01, 0.01 / 25 / 1e4, (6 - peak) / (30 - peak)))
    assert rates[:6] == sorted(rates[:6])
    assert rates[6:] == sorted(rates[6:], reverse=True)


@pytest.mark.parametrize("n_epochs", [1, 2, 5, 10, 19])
def test_a_short_run_of_the_fast_schedule_has_a_rise(n_epochs, rates) -> None:
    make_model().train(max_epochs=n_epochs, enable_progress_bar=False, seed=0, schedule="fast")
    assert len(rates) == n_epochs
    assert rates[0] == pytest.approx(SCHEDULES["fast"]["lr"] / 25)
    assert max(rates) <= SCHEDULES["fast"]["lr"]
    if n_epochs > 1:
        assert rates[1] == max(rates)


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_a_rise_that_is_no_part_of_the_run_is_refused(share) -> None:
    with pytest.raises(ValueError, match="cycle_rise must be between 0 and 1"):
        TrainingPlan(one_cycle=True, cycle_rise=share)


def test_a_second_run_begins_another_cycle(rates) -> None:
    model = make_model()
    for _ in range(2):
        model.train(max_epochs=3, enable_progress_bar=False, seed=0, schedule="fast")
    assert len(rates) == 6
    assert rates[:3] == rates[3:]


def test_the_reference_schedule_keeps_its_learning_rate(rates) -> None:
    make_model().train(max_epochs=3, enable_progress_bar=False, seed=0)
    assert rates == [1e-3] * 3


@pytest.mark.parametrize(
    ("n_cells", "steps_per_epoch", "expected"),
    [
        (50, 1, 80),
        (2_000, 8, 62),
        (3_000, 12, 42),
        (4_000, 16, 31),
        (8_000, 32, 16),
        (8 * 10**5, 3_000, MIN_FAST_EPOCHS),
        (10**6, 4_000, 8),  # as long as the reference schedule
        (10**8, 400_000, 2),
    ],
)
def test_the_fast_schedule_takes_some_500_steps_and_10_epochs(
    n_cells, steps_per_epoch, expected
) -> None:
    assert default_max_epochs(n_cells, "fast", steps_per_epoch) == expected


def test_train_finds_the_number_of_epochs_of_a_schedule(monkeypatch) -> None:
    asked = {}

    class Stop(Exception):  # noqa: N818  # not an error
        pass

    def fake(*args: Any, **kwargs: Any) -> None:
        asked[schedule] = args[-1].max_epochs
        raise Stop

    monkeypatch.setattr(fit, "fit", fake)
    for schedule in SCHEDULES:
        with pytest.raises(Stop):
            make_model().train(schedule=schedule, batch_size=3, enable_progress_bar=False, seed=0)
    # 27 target cells, 3 at a time: 9 steps an epoch.
    assert asked == {"reference": 400, "fast": round(500 / 9)}


def test_what_is_given_goes_before_the_schedule() -> None:
    plan = TrainingPlan.from_kwargs({"lr": 1e-3}, "fast")
    assert plan == TrainingPlan(**(SCHEDULES["fast"] | {"lr": 1e-3}))
    assert plan.one_cycle
    assert TrainingPlan.from_kwargs(None) == TrainingPlan()


def test_an_unknown_schedule_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"one of \['reference', 'fast'\], not 'quick'"):
        make_model().train(schedule="quick")


def test_two_masters_of_the_learning_rate_are_refused() -> None:
    with pytest.raises(ValueError, match="both set the learning rate"):
        make_model().train(schedule="fast", plan_kwargs={"reduce_lr_on_plateau": True})


def test_one_cycle_drives_an_optimiser_of_the_user(rates) -> None:
    made = {"optimizer": "Custom", "optimizer_creator": lambda p: torch.optim.SGD(p, lr=1e-5)}
    make_model().train(
        max_epochs=4,
        enable_progress_bar=False,
        seed=0,
        plan_kwargs={"one_cycle": True, "lr": 1e-4} | made,
    )
    assert rates[0] == pytest.approx(1e-4 / 25)


@pytest.mark.slow
def test_the_fast_schedule_gets_further_in_as_many_steps() -> None:
    found = {}
    for schedule in SCHEDULES:
        pyro.set_rng_seed(0)
        model = make_model(200, 200, 40)
        model.train(max_epochs=60, enable_progress_bar=False, seed=0, schedule=schedule)
        found[schedule] = model.history["elbo_validation"].iloc[-1].item()
    assert found["fast"] < found["reference"] - 1.0


def test_steps_of_warmup_win_over_the_epochs_of_a_schedule() -> None:
    plan = TrainingPlan.from_kwargs({"n_steps_kl_warmup": 2}, "fast")
    assert [plan.kl_weight(step, 10, 5) for step in range(4)] == [0.0, 0.5, 1.0, 1.0]
