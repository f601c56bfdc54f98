"""Held-out losses do not explode with deep counts; if they do, a warning says so."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pytest
import torch
from training_helpers import column, make_adata, make_model, train, weights

from pyro_contrastive import ContrastiveVI, settings
from pyro_contrastive.networks import CellwiseBatchNorm
from pyro_contrastive.testing import SimulationSettings, simulate
from pyro_contrastive.training.batch_norm import refresh_statistics
from pyro_contrastive.training.loss_watch import LossWatch


def deep_model(seed: int = 0) -> ContrastiveVI:
    """Make a model of read counts, a million per cell."""
    sizes = {"n_background": 120, "n_target": 120, "n_genes": 200, "mean_total": 1e6}
    adata = simulate(SimulationSettings(**sizes), seed=0)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    settings.seed = seed
    return ContrastiveVI.from_preset(adata, "separated")


@pytest.fixture
def fast():
    """Arguments of a short run of the fast schedule."""
    return {"schedule": "fast", "max_epochs": 40, "seed": 0, "enable_progress_bar": False}


def test_the_held_out_loss_of_deep_counts_follows_the_training_loss(fast):
    model = deep_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no loss explodes, so there is no warning
        result = model.train(early_stopping=True, **fast)
    held_out, training = column(model, "elbo_validation"), column(model, "elbo_train")
    assert held_out.max() < 1.1 * training[0]
    assert held_out.argmin() > 20  # it keeps falling, also after the rate has risen
    assert result.best_epoch is not None
    assert result.best_epoch > 20


@pytest.mark.slow
def test_with_lagging_statistics_it_explodes_and_a_warning_says_so(fast):
    model = deep_model()
    with pytest.warns(UserWarning, match="The held-out loss exploded: in epoch") as caught:
        model.train(plan_kwargs={"precise_batch_norm": False}, **fast)
    assert len(caught) == 1
    held_out, training = column(model, "elbo_validation"), column(model, "elbo_train")
    assert held_out.max() > 3 * held_out[0]
    assert training.max() == training[0]  # the weights themselves are fine


def norms_of(model: ContrastiveVI) -> list[CellwiseBatchNorm]:
    return [m for m in model.module.modules() if isinstance(m, CellwiseBatchNorm)]


@pytest.mark.parametrize("validated", [True, False])
def test_no_weight_depends_on_precise_statistics(validated):
    trained = {}
    for precise in (True, False):
        pyro.set_rng_seed(0)
        model = make_model(make_adata(40, 40))
        every = 1 if validated else None
        plan = {"precise_batch_norm": precise}
        train(model, 3, plan_kwargs=plan, check_val_every_n_epoch=every, seed=0)
        assert {norm.momentum for norm in norms_of(model)} == {0.01}  # the module is unchanged
        trained[precise] = model
    parameters = [dict(trained[p].module.named_parameters()) for p in (True, False)]
    for name, parameter in parameters[0].items():
        assert torch.equal(parameter, parameters[1][name]), name
    means = [torch.cat([n.running_mean for n in norms_of(trained[p])]) for p in (True, False)]
    assert not torch.allclose(*means)


def test_precise_statistics_are_means_and_variances_of_the_training_cells():
    """Statistics of the first layer of an encoder, which has no dropout before it, by hand."""
    model = make_model(make_adata(40, 40))
    plan = {"precise_batch_norm": True}
    train(model, 2, plan_kwargs=plan, train_size=0.8, batch_size=64, seed=0)  # one step an epoch
    block = model.module.guide.z_encoder.body.blocks[0]
    logs = np.log1p(model.adata.X.toarray()[model.train_indices])
    weight, bias = (v.detach().double().numpy() for v in block.linear.parameters())
    before = logs.astype(float) @ weight.T + bias  # [cells, hidden]
    np.testing.assert_allclose(block.norm.running_mean, before.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(block.norm.running_var, before.var(0, ddof=1), rtol=1e-3)


def test_what_the_programs_do_not_run_is_left_alone():
    model = make_model(make_adata(40, 40))
    idle = CellwiseBatchNorm(3)
    idle.running_mean.fill_(7.0)
    model.module.idle = idle
    cells = model._data(None).cells(np.arange(80))
    model.module.eval()
    refresh_statistics(model.module, [cells])
    assert idle.running_mean.tolist() == [7.0] * 3
    assert idle.momentum == 0.1
    assert not model.module.training


def test_early_stopping_does_not_look_while_the_learning_rate_rises():
    cycle = {"one_cycle": True, "cycle_rise": 0.5, "n_epochs_kl_warmup": 0, "lr": 1e-12}
    model = make_model(make_adata(40, 40))
    result = train(model, 10, plan_kwargs=cycle, early_stopping=True, seed=0)
    assert result.best_epoch is not None
    assert result.best_epoch >= 5
    never = cycle | {"cycle_rise": 0.99}
    before = weights(model)
    with pytest.raises(ValueError, match=r"after the rise of the .*would never check"):
        train(model, 10, plan_kwargs=never, early_stopping=True, check_val_every_n_epoch=9)
    assert all(torch.equal(value, weights(model)[name]) for name, value in before.items())


def warnings_of(values: list[float], name: str = "elbo_validation") -> list[str]:
    """Return the warnings about the losses of a run."""
    watch = LossWatch(lr=0.015)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch, value in enumerate(values):
            watch.check({name: value, "kl_weight": 1.0}, epoch)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    "values",
    [
        [8000.0, 7900.0, 8300.0, 20_000.0, 7000.0],  # 2.5 times as large: no warning yet
        [300.0, -500.0, -400.0, 400.0],  # negative, because densities may exceed 1
        [5.0],
        [],
    ],
)
def test_of_losses_that_do_not_explode_there_is_no_warning(values):
    assert warnings_of(values) == []


@pytest.mark.parametrize(
    ("name", "kind"), [("elbo_train", "training"), ("elbo_validation", "held-out")]
)
def test_an_explosion_is_reported_once_with_its_size(name, kind):
    (caught,) = warnings_of([8000.0, 7000.0, 1.5e8, 2e8, 7000.0, 1e9], name)
    assert caught.startswith(
        f"The {kind} loss exploded: in epoch 2 {name} is 1.5e+08 nats per pair"
    )
    assert "7,000 before" in caught
    assert '{"lr": 0.005}' in caught  # a third


def test_an_explosion_of_losses_below_zero_is_reported():
    assert len(warnings_of([-100.0, -120.0, 200.0])) == 1
