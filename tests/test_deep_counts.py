"""Depth does not matter: no explosion of held-out losses, and if there is one, it is told."""

from __future__ import annotations

import warnings

import pyro
import pytest
import torch
from training_helpers import column, make_adata, make_model, train, weights

from pyro_contrastive import ContrastiveVI, settings
from pyro_contrastive.networks import CellwiseBatchNorm
from pyro_contrastive.testing import SimulationSettings, simulate
from pyro_contrastive.training.loss_watch import LossWatch
from pyro_contrastive.training.plan import TrainingPlan

LONG_MEMORY = {"batch_norm_momentum": 0.01}
"""Running statistics of some 100 steps, as in the reference."""


def deep_model(seed: int = 0) -> ContrastiveVI:
    """Make a model of read counts, a million a cell."""
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
        warnings.simplefilter("error")  # nothing explodes, so nothing is told
        result = model.train(early_stopping=True, **fast)
    held_out, training = column(model, "elbo_validation"), column(model, "elbo_train")
    assert held_out.max() < 1.1 * training[0]
    assert held_out.argmin() > 20  # it falls all along; the epochs of the rising rate are not best
    assert result.best_epoch is not None
    assert result.best_epoch > 20


def test_with_a_long_memory_of_batch_statistics_it_explodes_and_that_is_told(fast):
    model = deep_model()
    with pytest.warns(UserWarning, match="The held-out loss exploded: in epoch") as told:
        model.train(plan_kwargs=LONG_MEMORY, **fast)
    assert len(told) == 1
    held_out, training = column(model, "elbo_validation"), column(model, "elbo_train")
    assert held_out.max() > 3 * held_out[0]
    assert training.max() == training[0]  # of the weights there is nothing to complain


def test_the_memory_changes_running_statistics_and_no_weight():
    trained = {}
    for momentum in (None, 0.5):
        pyro.set_rng_seed(0)
        model = make_model(make_adata(40, 40))
        train(model, 3, plan_kwargs={"batch_norm_momentum": momentum}, seed=0)
        norms = [m for m in model.module.modules() if isinstance(m, CellwiseBatchNorm)]
        assert {norm.momentum for norm in norms} == {0.01}  # the module is as it was
        trained[momentum] = (dict(model.module.named_parameters()), norms)
    for name, parameter in trained[None][0].items():
        assert torch.equal(parameter, trained[0.5][0][name]), name
    means = [torch.cat([norm.running_mean for norm in trained[m][1]]) for m in (None, 0.5)]
    assert not torch.allclose(*means)


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5, float("nan")])
def test_a_memory_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match="batch_norm_momentum must be above 0 and at most 1"):
        TrainingPlan(batch_norm_momentum=momentum)


def test_early_stopping_does_not_look_while_the_learning_rate_rises():
    cycle = {"one_cycle": True, "cycle_rise": 0.5, "n_epochs_kl_warmup": 0, "lr": 1e-12}
    model = make_model(make_adata(40, 40))
    result = train(model, 10, plan_kwargs=cycle, early_stopping=True, seed=0)
    assert result.best_epoch is not None
    assert result.best_epoch >= 5
    never = cycle | {"cycle_rise": 0.99}
    before = weights(model)
    with pytest.raises(ValueError, match=r"after the rise of the .*would never look"):
        train(model, 10, plan_kwargs=never, early_stopping=True, check_val_every_n_epoch=9)
    assert all(torch.equal(value, weights(model)[name]) for name, value in before.items())


def losses_told(values: list[float], name: str = "elbo_validation") -> list[str]:
    """What is told of the losses of a run."""
    watch = LossWatch(lr=0.015)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for epoch, value in enumerate(values):
            watch.look({name: value, "kl_weight": 1.0}, epoch)
    return [str(one.message) for one in told]


@pytest.mark.parametrize(
    "values",
    [
        [8000.0, 7900.0, 8300.0, 20_000.0, 7000.0],  # 2.5 times: no cause for alarm
        [300.0, -500.0, -400.0, 400.0],  # densities may exceed 1
        [5.0],
        [],
    ],
)
def test_of_losses_that_do_not_explode_nothing_is_told(values):
    assert losses_told(values) == []


@pytest.mark.parametrize(
    ("name", "kind"), [("elbo_train", "training"), ("elbo_validation", "held-out")]
)
def test_an_explosion_is_told_once_with_its_size(name, kind):
    (told,) = losses_told([8000.0, 7000.0, 1.5e8, 2e8, 7000.0, 1e9], name)
    assert told.startswith(f"The {kind} loss exploded: in epoch 2 {name} is 1.5e+08 nats per pair")
    assert "7,000 before" in told
    assert '{"lr": 0.005}' in told  # a third


def test_an_explosion_of_losses_below_zero_is_told():
    assert len(losses_told([-100.0, -120.0, 200.0])) == 1
