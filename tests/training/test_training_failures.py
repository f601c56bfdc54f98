"""What training does when something goes wrong, or is interrupted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from training_helpers import column, make_model, same, split_of_seed, train, weights

from pyro_contrastive import (
    CellBatch,
    ContrastiveVI,
    Gaussian,
    NegativeBinomial,
    Penalty,
    Prior,
)
from pyro_contrastive.training import run
from pyro_contrastive.training.evaluate import evaluate
from pyro_contrastive.training.finite import NonFiniteLossError


class FailsLater(NegativeBinomial):
    """Turns NaN at its fifth evaluation in training mode."""

    n_calls = 0

    def forward(self, heads: Mapping[str, Tensor], library: Tensor) -> Any:
        self.n_calls += self.training
        bad = float("nan") if self.training and self.n_calls >= 5 else 1.0
        return super().forward(heads, library * bad)


class PriorFailsLater(Prior):
    n_calls = 0

    def forward(self, batch: CellBatch) -> dist.Distribution:
        self.n_calls += self.training
        loc = torch.full((2,), float("nan") if self.n_calls >= 5 else 0.0)
        return dist.Normal(loc, 1.0).to_event(1)


class PenaltyFailsLater(Penalty):
    n_calls = 0

    def forward(self, model_trace: Any, guide_trace: Any, batch: CellBatch) -> Tensor:
        self.n_calls += self.training
        return guide_trace.nodes["s"]["value"].sum() * (float("inf") if self.n_calls > 4 else 1.0)


class GradientFails(Penalty):
    """sqrt at 0: a finite value without a finite gradient."""

    def forward(self, model_trace: Any, guide_trace: Any, batch: CellBatch) -> Tensor:
        return (0.0 * guide_trace.nodes["s"]["fn"].mean).sum().sqrt()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda: {"likelihood": FailsLater()}, "step 4: site 'x' of the model.*density"),
        (
            lambda: {"salient_prior": PriorFailsLater()},
            "epoch 2, step 4: site 's' of the model.*density",
        ),
        (lambda: {"penalties": [PenaltyFailsLater()]}, "epoch 2, step 4: .*'penaltyfailslater'"),
        (
            lambda: {"penalties": [GradientFails()]},
            "gradient is not finite .*step 0.*'guide.s_encoder",
        ),
    ],
)
def test_nan_names_the_site_and_leaves_weights_finite(parts, message):
    model = make_model(**parts())
    with pytest.raises(NonFiniteLossError, match=message):
        train(model, 5, batch_size=15, train_size=1.0)
    assert all(torch.isfinite(value).all() for value in weights(model).values())
    assert not model.module.training
    assert model.module.objective.kl_weight == 1.0
    assert pyro.infer.util.is_validation_enabled()
    n_done = 0 if "gradient" in message else 2
    assert len(model.history.get("elbo_train", [])) == n_done


def test_diverging_weights_leave_batch_norm_finite():
    model = make_model()
    with pytest.raises(NonFiniteLossError, match="Lower the learning rate"):
        train(model, 50, plan_kwargs={"lr": 1e4})
    assert all(torch.isfinite(value).all() for value in weights(model).values())


class NanFromTheStart(Prior):
    def forward(self, batch: CellBatch) -> dist.Distribution:
        return dist.Normal(torch.full((2,), float("nan")), 1.0).to_event(1)


class ImpossibleFromTheStart(Prior):
    def forward(self, batch: CellBatch) -> dist.Distribution:
        return dist.Normal(torch.zeros(2), 1e-30).to_event(1)


def test_what_is_wrong_from_the_start_is_said_before_training():
    with pytest.raises(ValueError, match="parameter loc") as caught:
        train(make_model(salient_prior=NanFromTheStart()))
    assert "before training" in caught.value.__notes__[0]
    with pytest.raises(NonFiniteLossError, match="before the first step: site 's' of the model"):
        train(make_model(salient_prior=ImpossibleFromTheStart()))


class LooseParameter(Prior):
    def forward(self, batch: CellBatch) -> dist.Distribution:
        return dist.Normal(pyro.param("loose", torch.zeros(2)), 1.0).to_event(1)


def test_a_parameter_that_would_not_be_trained_is_refused():
    model = make_model(salient_prior=LooseParameter())
    with pytest.raises(ValueError, match=r"pyro.param\('loose'\) does not belong to a module"):
        train(model)


class LearnedPrior(Prior):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(2))

    def forward(self, batch: CellBatch) -> dist.Distribution:
        return dist.Normal(self.mean, 1.0).to_event(1)


def test_every_parameter_is_trained():
    model = make_model(salient_prior=LearnedPrior(), use_observed_lib_size=False)
    before = dict(model.module.named_parameters())
    before = {name: value.detach().clone() for name, value in before.items()}
    train(model, 3, plan_kwargs={"min_kl_weight": 1.0})
    same = [n for n, v in model.module.named_parameters() if torch.equal(v, before[n])]
    assert same == []


def interrupt_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = run.Run.train_step

    def train_step(self: run.Run, *args: Any) -> Any:
        if self.step == step:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(run.Run, "train_step", train_step)


def test_ctrl_c_keeps_what_was_learned(monkeypatch, caplog):
    model = make_model()
    before = weights(model)
    interrupt_at_step(monkeypatch, 5)
    with caplog.at_level("WARNING"):
        result = train(model, 50, batch_size=15, train_size=0.8)  # two steps an epoch
    assert (result.interrupted, result.n_epochs) == (True, 2)
    assert "Interrupted after 2 epochs" in caplog.text
    assert model.is_trained
    assert model.history["elbo_train"].index.tolist() == [0, 1]
    assert not same(before, weights(model))
    assert not model.module.training
    assert model.module.objective.kl_weight == 1.0
    assert pyro.infer.util.is_validation_enabled()
    assert np.isfinite(model.get_latent_representation()).all()
    monkeypatch.undo()
    train(model, 1)
    assert model.history["elbo_train"].index.tolist() == [0, 1, 2]


def test_ctrl_c_at_once(monkeypatch):
    interrupt_at_step(monkeypatch, 0)
    model = make_model()
    assert train(model, 3).interrupted
    assert not model.history


@pytest.mark.filterwarnings("ignore:The held-out loss exploded")  # at a rate of 0.5
def test_ctrl_c_with_early_stopping_puts_back_the_best_weights(monkeypatch):
    model = make_model()
    interrupt_at_step(monkeypatch, 5)
    plan = {"lr": 0.5, "n_epochs_kl_warmup": 0}
    train(model, 50, early_stopping=True, train_size=0.5, plan_kwargs=plan, seed=0)
    split = split_of_seed(model, seed=0, train_size=0.5)
    found = evaluate(model.module, model._data(None), split.validation, 128, "cpu")
    elbo_now = found["reconstruction_loss"] + found["kl_z"] + found["kl_s"]
    assert elbo_now == column(model, "elbo_validation").min()


def test_data_that_are_too_large_for_the_networks_are_named() -> None:
    counts = np.zeros((40, 6), dtype=np.float32)
    counts[:, 0] = 1e6 * np.arange(40)
    names = [f"cell{i}" for i in range(40)]
    obs = pd.DataFrame({"condition": ["control", "treated"] * 20}, index=names)
    adata = ad.AnnData(counts, obs=obs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
        model = ContrastiveVI(adata, n_hidden=8, likelihood=Gaussian(log1p=False))
    with pytest.raises(NonFiniteLossError, match=r"values up to .*e\+07.*Gaussian. Normalise them"):
        model.train(max_epochs=1, enable_progress_bar=False)
