"""Splits, mini-batches, the loop, early stopping, history: with real fits of small data."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor

from pyro_contrastive import (
    MMD,
    CellBatch,
    ContrastiveModel,
    ContrastiveVI,
    NegativeBinomial,
    Penalty,
    Prior,
    Wasserstein,
)
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.testing import SimulationSettings, simulate
from pyro_contrastive.training import EarlyStopping, TrainingPlan, fit
from pyro_contrastive.training.checks import NonFiniteLossError
from pyro_contrastive.training.evaluate import evaluate
from pyro_contrastive.training.history import FitResult
from pyro_contrastive.training.plan import default_max_epochs
from pyro_contrastive.training.splits import (
    PairedBatches,
    Population,
    evaluation_batches,
    split_populations,
)

SMALL = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}


def make_adata(n_background: int = 20, n_target: int = 30) -> ad.AnnData:
    adata = simulate(
        SimulationSettings(n_background=n_background, n_target=n_target, n_genes=10, mean_total=80)
    )
    adata.obs["donor"] = np.resize(["a", "b"], adata.n_obs)
    adata.obs["score"] = np.linspace(-1, 1, adata.n_obs)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    return adata


def make_model(adata: ad.AnnData | None = None, **kwargs: Any) -> ContrastiveVI:
    return ContrastiveVI(make_adata() if adata is None else adata, **(SMALL | kwargs))


def train(model: ContrastiveVI, max_epochs: int = 2, **kwargs: Any) -> FitResult:
    quiet = {"max_epochs": max_epochs, "enable_progress_bar": False, "accelerator": "cpu"}
    return model.train(**(quiet | kwargs))


def weights(model: ContrastiveVI) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def column(model: ContrastiveVI, name: str) -> np.ndarray:
    return model.history[name][name].to_numpy()


@pytest.fixture
def batches_seen(monkeypatch):
    """Record the indices of the cells of every mini-batch, by whether the module was training."""
    seen: dict[bool, list[np.ndarray]] = {True: [], False: []}
    model: list[ContrastiveVI] = []
    original = CellData.cells

    def cells(self: CellData, indices: np.ndarray, *arguments: Any) -> CellBatch:
        seen[model[0].module.training].append(indices)
        return original(self, indices, *arguments)

    monkeypatch.setattr(CellData, "cells", cells)

    def watch(watched: ContrastiveVI) -> dict[bool, list[np.ndarray]]:
        model.append(watched)
        return seen

    return watch


# Splits


@pytest.mark.parametrize(
    ("sizes", "n_train", "n_validation"),
    [
        ({}, 90, 10),
        ({"train_size": 0.55, "validation_size": 0.2}, 55, 20),
        ({"train_size": 0.7}, 70, 30),
        ({"train_size": 1.0}, 100, 0),
        ({"validation_size": 0.3}, 70, 30),
        ({"train_size": 0.5, "validation_size": 0.2}, 50, 20),
        ({"train_size": 0.333, "validation_size": 0.333}, 34, 33),
    ],
)
def test_sizes_of_the_split(sizes, n_train, n_validation):
    background, target = np.arange(100), np.arange(100, 300)
    split = split_populations(background, target, rng=np.random.default_rng(0), **sizes)
    assert (len(split.train.background), len(split.validation.background)) == (
        n_train,
        n_validation,
    )
    for cells in ("background", "target"):
        parts = [getattr(p, cells) for p in (split.train, split.validation, split.test)]
        given = background if cells == "background" else target
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), given)


def test_unshuffled_split_is_in_order_as_in_scvi_tools():
    split = split_populations(
        np.arange(10),
        np.arange(10, 30),
        train_size=0.6,
        validation_size=0.2,
        shuffle=False,
        rng=np.random.default_rng(0),
    )
    assert split.validation.background.tolist() == [0, 1]
    assert split.train.background.tolist() == [2, 3, 4, 5, 6, 7]
    assert split.test.background.tolist() == [8, 9]
    assert split.train.target.tolist() == list(range(14, 26))


@pytest.mark.parametrize(
    "sizes",
    [
        {"train_size": 0.0},
        {"train_size": 1.1},
        {"train_size": -0.5},
        {"train_size": float("nan")},
        {"validation_size": 1.0},
        {"validation_size": -0.1},
        {"train_size": 0.8, "validation_size": 0.3},
    ],
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="train_size must be above 0 and at most 1"):
        train(make_model(), **sizes)


def test_each_population_is_split_on_its_own_and_held_out_cells_never_train(batches_seen):
    model = make_model(make_adata(20, 60))
    seen = batches_seen(model)
    train(model, 3, train_size=0.75, batch_size=16)
    trained, held_out = (set(np.concatenate(seen[key]).tolist()) for key in (True, False))
    held_out -= trained  # the checks before training run on training cells
    assert len(trained & set(range(20))) == 15
    assert len(trained & set(range(20, 80))) == 45
    assert len(held_out) == 20


@pytest.mark.parametrize("as_mask", [False, True])
def test_given_indices_are_the_populations(batches_seen, as_mask):
    adata = make_adata()
    ContrastiveVI.setup_anndata(adata)  # no condition, which the indices would contradict
    model = make_model(adata)
    seen = batches_seen(model)
    background, target = [0, 40, 41], [1, 2, 30, 45]
    if as_mask:
        masks = np.zeros((2, 50), dtype=bool)
        masks[0, background] = masks[1, target] = True
        train(model, 1, background_indices=masks[0], target_indices=masks[1], train_size=1.0)
    else:
        train(model, 1, background_indices=background, target_indices=target, train_size=1.0)
    assert set(np.concatenate(seen[True]).tolist()) == {*background, *target}


def test_given_indices_set_the_condition(monkeypatch):
    seen = []
    original = ContrastiveModel.forward

    def forward(self: ContrastiveModel, batch: CellBatch) -> Tensor:
        seen.append((int((~batch.is_target).sum()), int(batch.is_target.sum())))
        return original(self, batch)

    monkeypatch.setattr(ContrastiveModel, "forward", forward)
    adata = make_adata()
    ContrastiveVI.setup_anndata(adata)  # no condition
    train(make_model(adata), 1, background_indices=[40, 41], target_indices=[0, 1, 2], train_size=1)
    assert set(seen) == {(2, 3)}


def test_one_population_alone_or_overlapping_ones_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match="Give both"):
        train(model, background_indices=[0, 1])
    with pytest.raises(ValueError, match="both background and target"):
        train(model, background_indices=[0, 1], target_indices=[1, 2])
    assert not model.is_trained


# Mini-batches


@pytest.mark.parametrize(
    ("n_background", "n_target", "batch_size"),
    [(3, 100, 16), (100, 3, 16), (37, 50, 128), (50, 50, 7), (41, 50, 10), (1, 1, 128)],
)
def test_every_cell_of_both_populations_trains(n_background, n_target, batch_size):
    n_epochs, n_larger = 7, max(n_background, n_target)
    cells = Population(np.arange(n_background), np.arange(1000, 1000 + n_target))
    batches = PairedBatches(cells, batch_size, np.random.default_rng(0))
    assert batches.steps_per_epoch == -(-n_larger // batch_size)
    counts: Counter[int] = Counter()
    smaller_in_order: list[int] = []
    for _ in range(n_epochs):
        epoch = list(batches.epoch())
        assert len(epoch) == batches.steps_per_epoch
        of_larger = []
        for step in epoch:
            parts = step[step < 1000], step[step >= 1000]
            assert all(1 <= len(part) <= batch_size for part in parts)
            larger, smaller = parts if n_background >= n_target else parts[::-1]
            of_larger += larger.tolist()
            smaller_in_order += smaller.tolist()
            counts.update(step.tolist())
        assert len(of_larger) == len(set(of_larger)) == n_larger  # each exactly once an epoch
    times = [counts[i] for i in (*cells.background, *cells.target)]
    small_times = times[:n_background] if n_background < n_target else times[n_background:]
    assert max(small_times) - min(small_times) <= 1
    n_small = min(n_background, n_target)
    cycles = [smaller_in_order[i : i + n_small] for i in range(0, len(smaller_in_order), n_small)]
    assert all(len(set(cycle)) == len(cycle) for cycle in cycles)
    if n_small > 5:
        assert cycles[0] != cycles[1]  # reshuffled
    sizes = [len(step) for step in epoch]
    assert max(sizes) - min(sizes) <= 2  # no tiny last step


def test_evaluation_sees_every_cell_once():
    cells = Population(np.arange(3), np.arange(10, 45))
    seen = np.concatenate(list(evaluation_batches(cells, 8)))
    np.testing.assert_array_equal(np.sort(seen), np.r_[0:3, 10:45])


@pytest.mark.parametrize(("n_background", "n_target"), [(3, 100), (100, 3)])
@pytest.mark.parametrize("batch_size", [128, 16])
def test_very_unequal_populations_train(n_background, n_target, batch_size):
    model = make_model(make_adata(n_background, n_target), wasserstein_penalty=1)
    train(model, 2, batch_size=batch_size)
    assert np.isfinite(column(model, "elbo_train")).all()
    assert np.isfinite(model.get_latent_representation()).all()


def test_one_cell_of_each_population_trains():
    model = make_model(make_adata(1, 1))
    train(model, 3)
    assert np.isfinite(column(model, "elbo_train")).all()


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        train(make_model(), batch_size=0)


# KL warm-up and optimiser


@pytest.fixture
def kl_weights(monkeypatch):
    """Record the KL weight of every training step."""
    used: list[float] = []
    original = fit._Loss.forward

    def forward(self: fit._Loss, batch: CellBatch) -> Tensor:
        used.append(self.vae.objective.kl_weight)
        return original(self, batch)

    monkeypatch.setattr(fit._Loss, "forward", forward)
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


@pytest.mark.parametrize(("n_cells", "expected"), [(50, 400), (40_000, 200), (10**8, 1)])
def test_default_number_of_epochs_is_scvi_tools(n_cells, expected):
    assert default_max_epochs(n_cells) == expected


@pytest.mark.parametrize("max_epochs", [0, -3])
def test_number_of_epochs_must_be_positive(max_epochs):
    model = make_model()
    before = weights(model)
    with pytest.raises(ValueError, match=f"max_epochs must be at least 1, not {max_epochs}"):
        train(model, max_epochs)
    assert same(before, weights(model))
    assert not model.is_trained


@pytest.mark.parametrize("devices", [2, [0, 1], -1, "2", []])
def test_more_than_one_device_is_refused(devices):
    with pytest.raises(ValueError, match="Training uses one device"):
        train(make_model(), devices=devices)


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
    for name, value in model.module.named_parameters():  # from the weights there were
        torch.testing.assert_close(value, at_end[name], atol=1e-6, rtol=0)
    assert column(model, "elbo_train")[20] < column(model, "elbo_train")[0]


def test_training_fits():
    model = make_model()
    train(model, 60, plan_kwargs={"lr": 0.01}, seed=0)
    elbo = column(model, "elbo_validation")
    assert elbo[-5:].mean() < elbo[0] - 5


# Early stopping


def test_early_stopping_puts_back_the_best_weights():
    model = make_model(make_adata(40, 40))
    # A step this long jumps about, so the last epoch is not the best one.
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
    split = _split_of_seed(model, seed=3, train_size=0.5)
    found = evaluate(model.module, model._data(None), split.validation, 8, "cpu")
    elbo_now = found["reconstruction_loss"] + found["kl_z"] + found["kl_s"]
    assert elbo_now == elbo[warmup:].min()
    assert not model.module.training


def _split_of_seed(model: ContrastiveVI, seed: int, **kwargs: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rng = np.random.default_rng(int(torch.randint(2**62, ()).item()))
    condition = model._data(None).condition
    return split_populations(
        np.flatnonzero(condition == 0), np.flatnonzero(condition), rng=rng, **kwargs
    )


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
    # The first check is the best there can be; two more do not improve by so much.
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
    """Record what early stopping looked at."""
    made: list[tuple[EarlyStopping, dict[str, float]]] = []
    original = EarlyStopping.update

    def update(self: EarlyStopping, values: dict[str, float], module: torch.nn.Module) -> bool:
        made.append((self, dict(values)))
        return original(self, values, module)

    monkeypatch.setattr(EarlyStopping, "update", update)
    return made


def test_early_stopping_looks_from_the_end_of_the_warm_up_on(stoppings):
    """The loss of an epoch with a low KL weight is low: no reason to go back to it."""
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
    # The sixth epoch is the first to be looked at, and the best there can be.
    assert (result.stopped_early, result.n_epochs) == (True, 8)


def test_early_stopping_can_wait_longer_than_the_kl_warm_up(stoppings):
    kwargs: dict[str, Any] = {
        "early_stopping": True,
        "early_stopping_patience": 2,
        "early_stopping_min_delta": 1e9,
        "plan_kwargs": {"n_epochs_kl_warmup": 1},
    }
    waited = train(make_model(), 12, early_stopping_warmup_epochs=5, **kwargs)
    # The sixth epoch is the first to be looked at, and the best there can be.
    assert (waited.stopped_early, waited.n_epochs, len(stoppings)) == (True, 8, 3)
    again = train(make_model(), 12, early_stopping_warmup_epochs=0, **kwargs)
    assert again.n_epochs == 4
    with pytest.raises(ValueError, match="leaves early stopping none of the 5 epochs"):
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


@pytest.mark.parametrize(
    ("adata_sizes", "kwargs", "message"),
    [
        ((20, 30), {"train_size": 1.0}, "No cells are held out"),
        ((3, 30), {}, "No cells are held out"),
        ((20, 30), {"early_stopping_monitor": "val_loss"}, r"can watch \['elbo_train'"),
        ((20, 30), {"early_stopping_patience": 0}, "patience of at least 1"),
        ((20, 30), {"early_stopping_min_delta": -1}, "min_delta of at least 0"),
        ((20, 30), {"early_stopping_mode": "least"}, "mode 'min' or 'max'"),
        ((20, 30), {"early_stopping_warmup_epochs": -1}, "at least 0 warmup_epochs"),
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


# When something goes wrong


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
    with pytest.raises(ValueError, match=r"pyro.param\('loose'\) belongs to no module"):
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
    original = fit.Run.train_step

    def train_step(self: fit.Run, *args: Any) -> Any:
        if self.step == step:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(fit.Run, "train_step", train_step)


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


def test_ctrl_c_with_early_stopping_puts_back_the_best_weights(monkeypatch):
    model = make_model()
    interrupt_at_step(monkeypatch, 5)
    plan = {"lr": 0.5, "n_epochs_kl_warmup": 0}
    train(model, 50, early_stopping=True, train_size=0.5, plan_kwargs=plan, seed=0)
    split = _split_of_seed(model, seed=0, train_size=0.5)
    found = evaluate(model.module, model._data(None), split.validation, 128, "cpu")
    elbo_now = found["reconstruction_loss"] + found["kl_z"] + found["kl_s"]
    assert elbo_now == column(model, "elbo_validation").min()


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


def test_latent_library_with_a_batch_of_one_cell():
    adata = make_adata()
    adata.obs["donor"] = ["alone"] + ["rest"] * 49
    ContrastiveVI.setup_anndata(
        adata, condition_key="condition", background="control", batch_key="donor"
    )
    model = make_model(adata, use_observed_lib_size=False)
    train(model, 3)
    assert np.isfinite(column(model, "kl_library_train")).all()
    assert (column(model, "kl_library_train") > 0).all()


def test_covariates_and_size_factors_reach_the_model(monkeypatch):
    adata = make_adata()
    adata.obs["factor"] = np.linspace(50, 100, 50)
    ContrastiveVI.setup_anndata(
        adata,
        condition_key="condition",
        background="control",
        batch_key="donor",
        size_factor_key="factor",
        categorical_covariate_keys=["donor", "condition"],
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
    for column_name, changed in (("donor", "b"), ("score", 3.0)):
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
