"""A gradient or loss far larger than before: clipped, reported, and nothing is lost by it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from small_model import make, small_adata
from torch import Tensor

from pyro_contrastive import CellBatch, ContrastiveVI, Penalty, Prior
from pyro_contrastive.training import clipping
from pyro_contrastive.training.clipping import CLIPPED_AT, N_FIRST, Clipping
from pyro_contrastive.training.finite import NonFiniteLossError
from pyro_contrastive.training.loss_watch import LossWatch

QUIET: dict[str, Any] = {"enable_progress_bar": False, "accelerator": "cpu", "train_size": 1.0}


def step(clip: Clipping, norm: float, number: int = 0) -> list[Tensor]:
    """Clip two gradients that together have this norm, in proportion 3 to 4."""
    gradients = [torch.full((9,), 0.2 * norm), torch.tensor([[0.0, 0.8 * norm]])]
    clip.clip([gradients[0], None, gradients[1]], torch.tensor(2 * norm), number)
    return gradients


def norm_of(gradients: list[Tensor]) -> float:
    return float(torch.cat([g.flatten() for g in gradients]).norm())


def after(n: int, norm: float = 1.0) -> Clipping:
    clip = Clipping(torch.zeros(()))
    for number in range(n):
        step(clip, norm, number)
    return clip


@pytest.mark.parametrize("size", [1e3, 1e10, 1e15])
def test_a_gradient_far_larger_than_usual_is_scaled_as_a_whole(size):
    gradients = step(after(N_FIRST, 2.0), size)
    assert norm_of(gradients) == pytest.approx(CLIPPED_AT * 2.0, rel=1e-4)
    assert gradients[1][0, 1] / gradients[0][0] == pytest.approx(4.0)


@pytest.mark.parametrize("norm", [0.0, 1e-12, 1.0, CLIPPED_AT * 0.99])
def test_other_gradients_keep_their_bits(norm):
    clip = after(60)
    expected = [torch.full((9,), 0.2 * norm), torch.tensor([[0.0, 0.8 * norm]])]
    assert all(map(torch.equal, step(clip, norm), expected))


def test_the_first_steps_and_what_is_not_finite_are_left_alone():
    assert norm_of(step(after(N_FIRST - 1), 1e6)) == pytest.approx(1e6)
    clip = after(N_FIRST)
    assert step(clip, float("nan"))[0].isnan().all()
    assert not step(clip, float("inf"))[0].isfinite().any()
    assert norm_of(step(clip, 3e38)) == 0.0  # the norm itself is infinite
    assert norm_of(step(clip, 1e6)) == pytest.approx(CLIPPED_AT, rel=1e-4)  # as usual as before


def test_gradients_may_grow_over_many_steps():
    clip = after(N_FIRST)
    for number in range(200):
        norm = 1.05**number  # to 16,000
        assert norm_of(step(clip, norm)) == pytest.approx(norm, rel=1e-5)


def test_one_spike_hardly_changes_what_is_usual():
    clip = after(100)
    step(clip, 1e8)
    assert norm_of(step(clip, 1e8)) < 1.1 * CLIPPED_AT


def test_the_report_names_step_and_size_once():
    clip = after(100)
    step(clip, 1e5, 100)
    step(clip, 1e6, 101)
    with pytest.warns(
        UserWarning, match=r"epoch 3, step 101 \(and 1 more\).* 9\.\de\+05 times"
    ) as said:
        clip.report(3)
    assert "the loss was 2e+06, and in half of the epoch's steps at most 2." in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip.report(4)


class Spikes(Penalty):
    """A hundred thousand times as large at one step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.n_calls = 0

    def forward(self, model_trace: Any, guide_trace: Any, batch: CellBatch) -> Tensor:
        self.n_calls += self.training
        size = 1e5 if self.n_calls == self.at else 0.001
        return size * guide_trace.nodes["z"]["fn"].mean.square().sum()


def trained(at: int, **train: Any) -> ContrastiveVI:
    torch.manual_seed(0)
    model = make(small_adata(), penalties=[Spikes(at)])
    model.train(seed=0, batch_size=4, **(QUIET | {"max_epochs": 30} | train))
    return model


@pytest.mark.slow
def test_a_spike_is_reported_and_does_no_harm(monkeypatch):
    calm = trained(10**9)
    with pytest.warns(
        UserWarning, match=r"In epoch 9, step 39, the gradient was .* times as large"
    ) as caught:
        model = trained(40)
    assert caught[0].filename == __file__  # it points to the call of train
    monkeypatch.setattr(clipping, "CLIPPED_AT", float("inf"))
    unclipped = trained(40)
    expected, found, without = (
        m.history["elbo_train"].iloc[-1].item() for m in (calm, model, unclipped)
    )
    assert abs(found - expected) < 0.02 * expected
    assert abs(found - expected) < abs(without - expected)


# Weights that are kept


def watched(values: list[float]) -> tuple[LossWatch, torch.nn.Linear]:
    module = torch.nn.Linear(1, 1)
    watch = LossWatch(0.1, module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for epoch, value in enumerate(values):
            torch.nn.init.constant_(module.weight, epoch)
            watch.check({"elbo_train": value}, epoch)
    return watch, module


@pytest.mark.parametrize(
    ("values", "epoch"),
    [
        ([100.0, 90.0, 80.0], None),
        ([100.0, 1e5, 80.0], None),  # it came down again
        ([100.0, 90.0, 1e5], 1),
        ([100.0, 90.0, 1e5, 1e6, 400.0], 1),
    ],
)
def test_the_last_good_weights_are_put_back_after_an_explosion(values, epoch):
    watch, module = watched(values)
    assert watch.put_back() == (epoch is not None)
    assert module.weight.item() == (len(values) - 1 if epoch is None else epoch)
    if epoch is not None:
        assert watch.good_epoch == epoch


def test_weights_that_are_not_finite_are_put_back():
    watch, module = watched([3.0, 2.0])
    torch.nn.init.constant_(module.weight, float("nan"))
    assert watch.put_back()
    assert module.weight.item() == 1.0


class Diverges(torch.optim.SGD):
    """Changes the weights by far too much from the ninth step on."""

    n_steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.n_steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(0.7 * (self.n_steps > 8) * torch.randn_like(parameter))


def creator(parameters: Any) -> torch.optim.Optimizer:
    return Diverges(parameters, lr=1e-6)


def test_a_run_that_ends_in_an_explosion_ends_with_the_weights_before_it():
    torch.manual_seed(0)
    model = make(small_adata())
    plan = {"optimizer": "Custom", "optimizer_creator": creator}
    with pytest.warns(UserWarning, match="the last weights before it rose are put back"):
        result = model.train(max_epochs=4, batch_size=4, seed=0, plan_kwargs=plan, **QUIET)
    losses = model.history["elbo_train"]["elbo_train"]
    assert losses.iloc[-1] > 3 * losses.iloc[0]
    assert result.best_epoch == model.history["restored"].index[0] == 1
    assert model.get_reconstruction_error()["reconstruction_loss"] < losses.iloc[0]


def without_eps(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, eps=0.0)


class Unused(Penalty):
    """Has a parameter on which the loss depends by 0."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = torch.nn.Parameter(torch.ones(()))

    def forward(self, model_trace: Any, guide_trace: Any, batch: CellBatch) -> Tensor:
        return 0.0 * self.idle + 0.0 * guide_trace.nodes["z"]["value"].sum()


def test_no_weights_are_promised_that_are_not_there():
    with pytest.raises(ValueError, match="eps must be"):
        make(small_adata()).train(max_epochs=1, plan_kwargs={"eps": 0}, **QUIET)
    model = make(small_adata(), penalties=[Unused()])
    before = {k: v.clone() for k, v in model.module.named_parameters()}
    plan = {"optimizer": "Custom", "optimizer_creator": without_eps}
    with pytest.raises(NonFiniteLossError):
        model.train(max_epochs=3, plan_kwargs=plan, **QUIET)
    for name, value in model.module.named_parameters():
        assert torch.equal(value, before[name]), name


# Cells that are named


class FailsForSome(Prior):
    """Has no value for cells with the largest counts, from the third evaluation in training on."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest
        self.n_calls = 0

    def forward(self, batch: CellBatch) -> dist.Distribution:
        self.n_calls += self.training
        bad = (batch.library >= self.largest) & (self.n_calls > 2)
        loc = torch.where(bad, float("nan"), 0.0).expand(-1, 2)
        return dist.Normal(loc, 1.0).to_event(1)


@pytest.mark.parametrize("n_bad", [1, 8])
def test_the_error_names_the_cells(n_bad):
    adata = small_adata()
    totals = np.asarray(adata.X.sum(1)).ravel()
    totals[:12] = 0  # the prior is asked for target cells
    worst = np.argsort(totals)[-n_bad:]
    model = make(adata, salient_prior=FailsForSome(float(totals[worst].min())))
    with pytest.raises(NonFiniteLossError, match=r"site 's' of the model \(its .* in ") as caught:
        model.train(max_epochs=9, batch_size=None, seed=0, **QUIET)
    said = str(caught.value)
    named = [name for name in adata.obs_names if f"'{name}'" in said]
    assert set(named) <= set(adata.obs_names[worst])
    assert len(named) == min(n_bad, 5)
    assert ("and 3 more" in said) == (n_bad == 8)
