"""KL warm-up, optimiser, history and seeds, in real fits of small data."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor
from training_helpers import column, make_adata, make_model, same, train, weights

from pyro_contrastive import (
    MMD,
    CellBatch,
    ContrastiveModel,
    ContrastiveVI,
    Wasserstein,
)
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.training import TrainingPlan, run
from pyro_contrastive.training.evaluate import evaluate
from pyro_contrastive.training.plan import default_max_epochs
from pyro_contrastive.training.splits import (
    Population,
)

# KL warm-up and optimiser


@pytest.fixture
def kl_weights(monkeypatch):
    """Record the KL weight of every training step."""
    used: list[float] = []
    original = run._Loss.forward

    def forward(self: run._Loss, batch: CellBatch) -> Tensor:
        used.append(self.vae.objective.kl_weight)
        return original(self, batch)

    monkeypatch.setattr(run._Loss, "forward", forward)
    return used


@pytest.mark.parametrize(
    ("plan", "warmup"),
    [
        ({}, 10),  # a quarter of 8 epochs of 5 steps
        ({"n_epochs_kl_warmup": 3}, 15),
        ({"n_steps_kl_warmup": 4}, 4),
        ({"n_epochs_kl_warmup": 3, "n_steps_kl_warmup": 4}, 15),
        ({"n_epochs_kl_warmup": 0}, 0),
        ({"min_kl_weight": 0.5, "max_kl_weight": 0.9, "n_steps_kl_warmup": 4}, 4),
    ],
)
def test_kl_weight_grows_linearly_from_step_to_step(kl_weights, plan, warmup):
    model = make_model(make_adata(20, 30))
    train(model, 8, train_size=1.0, batch_size=6, plan_kwargs=plan | {"record_steps": False})
    low, high = plan.get("min_kl_weight", 0.0), plan.get("max_kl_weight", 1.0)
    expected = np.full(40, high)
    expected[:warmup] = low + (high - low) * np.arange(warmup) / max(warmup, 1)
    np.testing.assert_allclose(kl_weights, expected)
    assert column(model, "kl_weight").tolist() == kl_weights[4::5]
    assert model.module.objective.kl_weight == high


def test_kl_weight_scales_the_training_loss(kl_weights):
    model = make_model()
    train(model, 2, plan_kwargs={"min_kl_weight": 0.25, "max_kl_weight": 0.25})
    expected = column(model, "reconstruction_loss_train") + 0.25 * column(model, "kl_local_train")
    np.testing.assert_allclose(column(model, "train_loss_epoch"), expected, rtol=1e-5)


def test_unknown_plan_key_lists_the_known_ones():
    with pytest.raises(TypeError, match=r"\['learning_rate'\]; it takes \['lr', 'weight_decay'"):
        train(make_model(), plan_kwargs={"learning_rate": 0.1})


@pytest.mark.parametrize(
    "plan",
    [
        {"lr": 0},
        {"lr": float("nan")},
        {"min_kl_weight": 0.5, "max_kl_weight": 0.2},
        {"min_kl_weight": -1},
        {"n_epochs_kl_warmup": -1},
        {"n_steps_kl_warmup": -1},
    ],
)
def test_plan_out_of_range(plan):
    with pytest.raises(ValueError, match=f"{next(iter(plan))}.* not"):
        TrainingPlan.from_kwargs(plan)


def test_plan_reaches_the_optimiser():
    optimizer = TrainingPlan(lr=0.2, weight_decay=0.3, eps=0.4).make_optimizer(make_model().module)
    settings = optimizer.param_groups[0]
    assert [settings[k] for k in ("lr", "weight_decay", "eps")] == [0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("n_cells", "expected"), [(50, 400), (40_000, 200), (30_000, 267), (10**8, 1)]
)
def test_default_number_of_epochs_is_scvi_tools(n_cells, expected):
    assert default_max_epochs(n_cells) == expected


@pytest.mark.parametrize(
    ("max_epochs", "steps_per_epoch", "steps"), [(3, 1, 1), (400, 7, 700), (1, 5, 1), (11, 1, 3)]
)
def test_the_kl_weight_is_whole_after_a_quarter_of_the_run(max_epochs, steps_per_epoch, steps):
    # The quarters are .75, 700, 1.25 and 2.75 steps.
    weights = [TrainingPlan().kl_weight(i, steps_per_epoch, max_epochs) for i in range(steps + 1)]
    assert weights == pytest.approx([i / steps for i in range(steps + 1)])


@pytest.mark.parametrize("max_epochs", [0, -3])
def test_number_of_epochs_must_be_positive(max_epochs):
    model = make_model()
    before = weights(model)
    with pytest.raises(ValueError, match=f"max_epochs must be at least 1, not {max_epochs}"):
        train(model, max_epochs)
    assert same(before, weights(model))
    assert not model.is_trained


# What is recorded


def test_history_is_scvi_tools_like():
    model = make_model(wasserstein_penalty=1.0)
    result = train(model, 3)
    assert (result.n_epochs, result.stopped_early, result.interrupted) == (3, False, False)
    terms = ["elbo", "reconstruction_loss", "kl_local", "kl_global", "kl_z", "kl_s", "wasserstein"]
    names = {f"{t}_{part}" for t in terms for part in ("train", "validation")}
    losses = {"train_loss", "train_loss_epoch", "validation_loss"}
    assert set(model.history) == names | losses | {"kl_weight"}
    for name, frame in model.history.items():
        assert frame.columns.tolist() == [name]
        assert (frame.index.name, frame.index.tolist()) == ("epoch", [0, 1, 2])
        assert np.isfinite(frame.to_numpy()).all()
    for part in ("train", "validation"):
        parts = {t: column(model, f"{t}_{part}") for t in terms}
        np.testing.assert_allclose(parts["kl_local"], parts["kl_z"] + parts["kl_s"])
        total = parts["reconstruction_loss"] + parts["kl_local"]
        np.testing.assert_allclose(parts["elbo"], total)
        assert not parts["kl_global"].any()
    np.testing.assert_array_equal(column(model, "train_loss"), column(model, "train_loss_epoch"))


def test_history_has_scvi_tools_keys_and_layout():
    scvi_model = pytest.importorskip("scvi.external.contrastivevi").ContrastiveVI
    adata = make_adata()
    scvi_model.setup_anndata(adata)
    theirs = scvi_model(adata, n_hidden=8)
    cells = (np.arange(20), np.arange(20, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.train(
            *cells,
            max_epochs=2,
            batch_size=2,  # it records the KL weight every ten steps
            accelerator="cpu",
            check_val_every_n_epoch=1,
            enable_progress_bar=False,
        )
    model = make_model(adata)
    train(model, 2, batch_size=2, train_size=0.8)
    absent = {"wasserstein_loss_sum_train", "wasserstein_loss_sum_validation"}
    assert set(theirs.history) - set(model.history) == absent
    for name in set(theirs.history) - absent:
        ours, frame = model.history[name], theirs.history[name]
        assert ours.index.tolist() == frame.index.tolist()
        assert ours.index.dtype == frame.index.dtype
        assert (ours.index.name, list(ours.columns)) == (frame.index.name, list(frame.columns))


def test_validation_loss_is_the_objectives_with_the_kl_weight_of_the_epoch():
    penalties = [MMD(3.0), Wasserstein(5.0)]
    model = make_model(penalties=penalties, elbo=pyro.infer.TraceMeanField_ELBO)
    plan = {"n_epochs_kl_warmup": 4, "min_kl_weight": 0.3}
    train(model, 1, train_size=0.5, shuffle_set_split=False, plan_kwargs=plan)
    vae = model.module
    vae.objective.kl_weight = 0.3
    batch = model._data(None).cells(model.validation_indices)  # one mini-batch
    torch.manual_seed(0)
    with torch.no_grad():
        expected = vae.objective.loss(vae.model, vae.guide, batch)
    assert column(model, "validation_loss")[0] == pytest.approx(expected, rel=1e-5)
    assert abs(column(model, "elbo_validation")[0] - expected) > 1


def test_held_out_elbo_is_what_model_and_guide_say():
    """By hand: log-densities of the sites, one cell at a time, with the same draws."""
    model = make_model(elbo_kwargs={"num_particles": 3})
    train(model, 2)
    data = model._data(None)
    cells = Population(np.arange(5), np.arange(20, 32))
    found = evaluate(model.module, data, cells, batch_size=100, device="cpu")
    vae = model.module
    batch = data.cells(np.concatenate([cells.background, cells.target]))
    weight = np.r_[np.full(5, 1 / 5), np.full(12, 1 / 12)]
    losses = []
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(3):
            guide = pyro.poutine.trace(vae.guide).get_trace(batch)
            replayed = pyro.poutine.trace(pyro.poutine.replay(vae.model, guide)).get_trace(batch)
            x = replayed.nodes["x"]
            losses.append(-(x["fn"].log_prob(batch.x).numpy() * weight).sum())
        mean, variance = vae.guide.encode(batch)["s"]
    kl_s = 0.5 * (variance + mean**2 - 1 - variance.log()).sum(-1).numpy()
    assert found["reconstruction_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["kl_s"] == pytest.approx(kl_s[5:].mean(), rel=1e-5)


@pytest.mark.parametrize("vectorize", [False, True])
def test_held_out_elbo_does_not_grow_with_the_number_of_particles(vectorize):
    kwargs = {"num_particles": 20, "vectorize_particles": vectorize}
    model, many = make_model(), make_model(elbo_kwargs=kwargs)
    many.module.load_state_dict(model.module.state_dict())
    cells = Population(np.arange(20), np.arange(20, 50))
    one, twenty = (evaluate(m.module, model._data(None), cells, 128, "cpu") for m in (model, many))
    assert twenty["reconstruction_loss"] == pytest.approx(one["reconstruction_loss"], rel=0.05)
    assert twenty["kl_z"] == pytest.approx(one["kl_z"], rel=1e-4)


@pytest.mark.filterwarnings("ignore:There (is|are) only")
def test_held_out_penalty_is_the_mean_over_cells_when_a_population_is_small():
    model = make_model(make_adata(2, 40), wasserstein_penalty=3.0)
    cells = Population(np.arange(2), np.arange(2, 42))
    found = evaluate(model.module, model._data(None), cells, batch_size=4, device="cpu")
    with torch.no_grad():
        mean, variance = model.module.guide.encode(model._data(None).cells(np.arange(2)))["s"]
    expected = float((mean**2 + variance).sum(-1).mean())
    assert found["wasserstein"] == pytest.approx(expected, rel=1e-5)


class ModelWithGlobal(ContrastiveModel):
    def forward(self, batch: CellBatch) -> Tensor:
        pyro.sample("shift", dist.Normal(0.0, 1.0))
        return super().forward(batch)


class GuideWithGlobal(ContrastiveGuide):
    def forward(self, batch: CellBatch) -> None:
        pyro.sample("shift", dist.Normal(2.0, 1.0))
        super().forward(batch)


def test_parameters_with_a_prior_weigh_the_same_in_training_and_held_out():
    model = make_model(elbo=pyro.infer.TraceMeanField_ELBO)
    model.module.model.__class__ = ModelWithGlobal
    model.module.guide.__class__ = GuideWithGlobal
    train(model, 2, train_size=0.8, batch_size=5)
    # KL(N(2, 1) || N(0, 1)) = 2, shared by 40 training cells, of which a pair has two.
    np.testing.assert_allclose(column(model, "kl_shift_train"), 2 * 2 / 40, rtol=1e-5)
    np.testing.assert_allclose(column(model, "kl_shift_validation"), 2 * 2 / 40, rtol=1e-5)
    for part in ("train", "validation"):
        np.testing.assert_allclose(column(model, f"kl_global_{part}"), 2.0, rtol=1e-5)
        local = column(model, f"kl_z_{part}") + column(model, f"kl_s_{part}")
        np.testing.assert_allclose(column(model, f"kl_local_{part}"), local)
        total = column(model, f"reconstruction_loss_{part}") + local + 2.0 * 2 / 40
        np.testing.assert_allclose(column(model, f"elbo_{part}"), total)


def test_training_tells_the_objective_how_many_cells_there_are():
    model = make_model()
    train(model, 1, train_size=0.5)
    assert model.module.objective.data_size == 25


def test_training_a_second_time_continues():
    model = make_model()
    train(model, 20, plan_kwargs={"lr": 0.01}, seed=0)
    first = column(model, "train_loss_epoch").copy()
    at_end = weights(model)
    result = train(model, 2, plan_kwargs={"lr": 1e-9, "min_kl_weight": 1}, seed=1)
    assert result.n_epochs == 2
    assert model.history["elbo_train"].index.tolist() == list(range(22))
    np.testing.assert_array_equal(column(model, "train_loss_epoch")[:20], first)
    for name, value in model.module.named_parameters():  # continues from the former weights
        torch.testing.assert_close(value, at_end[name], atol=1e-6, rtol=0)
    assert column(model, "elbo_train")[20] < column(model, "elbo_train")[0]


def test_training_fits():
    model = make_model()
    train(model, 60, plan_kwargs={"lr": 0.01}, seed=0)
    elbo = column(model, "elbo_validation")
    assert elbo[-5:].mean() < elbo[0] - 5


# Seeds and global state


def run_with(seed: int | None, **kwargs: Any) -> ContrastiveVI:
    pyro.set_rng_seed(7)
    model = make_model()
    train(model, 2, seed=seed, batch_size=8, **kwargs)
    return model


@pytest.mark.parametrize("seed", [5, None])
def test_same_seed_same_weights_and_history(seed):
    first, second = run_with(seed), run_with(seed)
    assert same(weights(first), weights(second))
    for name in first.history:
        np.testing.assert_array_equal(column(first, name), column(second, name))


def test_another_seed_another_result():
    assert not same(weights(run_with(5)), weights(run_with(6)))
    pyro.set_rng_seed(7)
    model = make_model()
    pyro.set_rng_seed(8)
    train(model, 2, batch_size=8)
    assert not same(weights(run_with(None)), weights(model))


def test_global_state_is_left_alone():
    model = make_model()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    for enabled in (True, False):
        pyro.enable_validation(enabled)
        try:
            train(model, 1, seed=0)
            assert pyro.infer.util.is_validation_enabled() is enabled
            assert torch.distributions.Distribution._validate_args is enabled
        finally:
            pyro.enable_validation(True)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002


def test_without_a_seed_the_global_state_moves_on():
    model = make_model()
    before = torch.get_rng_state()
    train(model, 1)
    assert not torch.equal(torch.get_rng_state(), before)


# Several models in one process


def test_three_models_one_after_another_train_alike():
    adata, losses = make_adata(), []
    for _ in range(3):
        pyro.set_rng_seed(1)
        model = make_model(adata)
        train(model, 15, plan_kwargs={"lr": 0.01})
        losses.append(column(model, "train_loss_epoch"))
    np.testing.assert_array_equal(losses[1:], [losses[0]] * 2)
    assert losses[0][-1] < losses[0][0]


def test_three_models_one_after_another_train_alike_with_plain_pyro():
    adata, losses = make_adata(), []
    for _ in range(3):
        pyro.set_rng_seed(1)
        model = make_model(adata)
        vae, batch = model.module.train(), model._data(None).cells(np.arange(50))
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), vae.objective)
        losses.append([svi.step(batch) for _ in range(40)])
    np.testing.assert_array_equal(losses[1:], [losses[0]] * 2)
    assert np.mean(losses[0][-5:]) < 0.9 * losses[0][0]


# What else a model may be told


@pytest.mark.filterwarnings("ignore:.*occur in one condition only")
def test_latent_library_with_a_batch_of_one_cell():
    adata = make_adata()
    adata.obs["chip"] = ["alone"] + ["rest"] * 49
    ContrastiveVI.setup_anndata(
        adata, condition_key="condition", background="control", batch_key="chip"
    )
    model = make_model(adata, use_observed_lib_size=False)
    train(model, 3)
    assert np.isfinite(column(model, "kl_library_train")).all()
    assert (column(model, "kl_library_train") > 0).all()


@pytest.mark.filterwarnings("ignore:No value of .*condition")
def test_covariates_and_size_factors_reach_the_model(monkeypatch):
    adata = make_adata()
    adata.obs["factor"] = np.linspace(50, 100, 50)
    ContrastiveVI.setup_anndata(
        adata,
        condition_key="condition",
        background="control",
        batch_key="chip",
        size_factor_key="factor",
        categorical_covariate_keys=["chip", "condition"],
        continuous_covariate_keys=["score"],
    )
    model = make_model(adata)
    train(model, 2)
    assert np.isfinite(column(model, "elbo_validation")).all()
    batch = model._data(None).cells(np.arange(50))
    nodes = pyro.poutine.trace(model.module.model).get_trace(batch).nodes
    unit = adata.X.sum(1).mean() / adata.obs["factor"].mean()
    np.testing.assert_allclose(
        nodes["library"]["value"][:, 0], unit * adata.obs["factor"], rtol=1e-5
    )
    before = model.get_latent_representation()
    for column_name, changed in (("chip", "b"), ("score", 3.0)):
        other = adata.copy()
        other.obs[column_name] = changed
        assert not np.allclose(model.get_latent_representation(other), before)


def test_more_than_one_treatment_trains():
    adata = make_adata()
    adata.obs["drug"] = np.resize(["none", "a", "b"], 50)
    ContrastiveVI.setup_anndata(adata, condition_key="drug", background="none")
    model = make_model(adata, penalties=[Wasserstein(2.0)])
    train(model, 2)
    assert np.isfinite(column(model, "wasserstein_validation")).all()


def test_progress_is_shown_and_can_be_silenced(capsys):
    train(make_model(), 2, enable_progress_bar=True)
    assert "Epoch 2/2" in capsys.readouterr().out
    train(make_model(), 2)
    assert capsys.readouterr().out == ""


WHOLE = (
    "max_epochs",
    "batch_size",
    "check_val_every_n_epoch",
    "early_stopping_patience",
    "early_stopping_warmup_epochs",
    "seed",
)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [1.5, 2.0, "3"])
def test_whole_numbers_are_whole_before_anything_is_done(name, value, monkeypatch):
    model = make_model()
    monkeypatch.setattr(model, "_extract", lambda *_, **__: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match=f"{name} must be a whole number.*, not {value!r}"):
        train(model, **{name: value})
    assert not model.history


def test_whole_numbers_may_be_numpys():
    assert train(make_model(), max_epochs=np.int64(2), batch_size=np.int32(9)).n_epochs == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gradient_clip_val", "far larger than usual is always clipped"),
        ("callbacks", "without a Lightning Trainer"),
        ("logger", "model.history"),
        ("max_steps", "max_epochs="),
        ("lr", r'plan_kwargs=\{"lr": ...\}'),
        ("early_stoping", "did you mean early_stopping="),
        ("xyz", "it takes background_indices, .*, seed"),
    ],
)
def test_unknown_arguments_say_what_to_use_instead(name, said):
    model = make_model()
    with pytest.raises(TypeError, match=rf"train\(\) does not take {name}\. {name}: .*{said}"):
        train(model, **{name: 1})
    assert not model.history


def test_every_name_of_the_table_is_one_that_train_does_not_have():
    from inspect import signature

    from pyro_contrastive.training.arguments import LIGHTNING

    taken = set(signature(ContrastiveVI.train).parameters)
    assert not taken & set(LIGHTNING)
    spoken_of = set(re.findall(r"\b([a-z_]+)=", " ".join(LIGHTNING.values())))
    assert spoken_of <= taken
