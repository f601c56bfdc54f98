"""What `train` takes, what it refuses, and what the model knows of the cells afterwards."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from small_model import make

from pyro_contrastive import ContrastiveVI


def test_populations_given_to_train_are_remembered(adata, tmp_path) -> None:
    model = make(adata, condition_key=None)
    model.train(
        np.arange(12), np.arange(12, 24), max_epochs=1, enable_progress_bar=False, train_size=0.8
    )
    with pytest.warns(UserWarning, match="2 of these cells were neither background nor target"):
        both = model.get_normalized_expression(seed=0)
    same = np.isclose(both["background"], both["salient"], atol=1e-7).all(1)
    assert same.tolist() == [True] * 12 + [False] * 14
    turned = adata[::-1].copy()
    with pytest.warns(UserWarning, match="They are taken for target cells"):
        again = model.get_normalized_expression(turned)
    same = np.isclose(again["background"], again["salient"], atol=1e-7).all(1)
    assert same.tolist() == [False] * 14 + [True] * 12
    model.save(tmp_path / "model")
    loaded = ContrastiveVI.load(tmp_path / "model", adata)
    with pytest.warns(UserWarning, match="They are taken for target cells"):
        salient = loaded.get_salient_normalized_expression(seed=0)
    pd.testing.assert_frame_equal(salient, both["salient"])
    known = np.arange(24)
    loaded.get_salient_normalized_expression(indices=known)  # of which there is nothing to warn of


def test_each_condition_is_reported(adata) -> None:
    model = make(adata, condition_key="three")
    model.train(max_epochs=2, train_size=0.6, enable_progress_bar=False)
    names = {"elbo_control_validation", "elbo_drug1_validation", "elbo_drug2_validation"}
    assert names <= set(model.history)
    last = {name: model.history[name].iloc[-1, 0] for name in model.history}
    drugs = sorted((last["elbo_drug1_validation"], last["elbo_drug2_validation"]))
    target = last["elbo_validation"] - last["elbo_control_validation"]
    assert drugs[0] <= target + 1e-3
    assert target <= drugs[1] + 1e-3
    tables = {
        drug: model.differential_expression(
            groupby="three", group1=drug, group2="control", n_samples_overall=50, silent=True
        )
        for drug in ("drug1", "drug2")
    }
    for drug, table in tables.items():
        cells = adata[adata.obs["three"] == drug]
        means = pd.Series(np.asarray(cells.X.mean(0)).ravel(), adata.var_names)
        np.testing.assert_allclose(table["raw_mean1"], means[table.index], rtol=1e-5)
        scale = table["scale1"] - table["scale2"]
        assert (scale.abs() > 1e-4).any(), drug
    two = make(adata)
    two.train(max_epochs=1, train_size=0.6, enable_progress_bar=False)
    assert not any("control" in name for name in two.history)


def test_the_split_can_be_given(adata) -> None:
    model = make(adata)
    parts = [np.r_[0:8, 12:20], np.r_[8:12, 20:26]]
    model.train(
        max_epochs=1,
        datasplitter_kwargs={"external_indexing": parts},
        enable_progress_bar=False,
    )
    many = np.mean(
        [model.get_elbo(indices=parts[1], return_mean=False, seed=i) for i in range(99)], 0
    )
    recorded = model.history["elbo_validation"].iloc[-1, 0]
    assert -(many[:4].mean() + many[4:].mean()) == pytest.approx(recorded, rel=0.06)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"datasplitter_kwargs": {"external_indexing": [[0, 13], [13]]}}, "twice"),
        ({"datasplitter_kwargs": {"external_indexing": [[0, 1], [13]]}}, "both populations"),
        ({"datasplitter_kwargs": {"external_indexing": [[0, 99]]}}, r"\[0\] holds 0 to 99"),
        ({"datasplitter_kwargs": {"external_indexing": [[0]] * 4}}, "not 4"),
        ({"datasplitter_kwargs": {"drop_last": True}}, "drop_last"),
        (
            {"datasplitter_kwargs": {"external_indexing": [[0, 13]]}, "train_size": 0.8},
            "leave out train_size",
        ),
        ({"load_sparse_tensor": True}, "load_sparse_tensor"),
        ({"plan_kwargs": {"optimizer": "SGD"}}, "'Adam', 'AdamW' or 'Custom'"),
        ({"plan_kwargs": {"optimizer": "Custom"}}, "go together"),
        (
            {"plan_kwargs": {"reduce_lr_on_plateau": True, "lr_scheduler_metric": "x"}},
            "lr_scheduler_metric='x' is not recorded",
        ),
        ({"strategy": "ddp"}, "strategy"),
    ],
)
def test_what_train_cannot_honour_is_an_error(adata, arguments, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make(adata).train(max_epochs=1, enable_progress_bar=False, **arguments)


def test_optimisers_and_schedules(adata) -> None:
    quiet = {"max_epochs": 6, "enable_progress_bar": False, "seed": 0}
    model = make(adata)
    made = []

    def creator(parameters):
        made.append(torch.optim.SGD(parameters, lr=1e-4))
        return made[0]

    model.train(plan_kwargs={"optimizer": "Custom", "optimizer_creator": creator}, **quiet)
    assert len(made) == 1
    schedule = {
        "reduce_lr_on_plateau": True,
        "lr_patience": 0,
        "lr_factor": 0.1,
        "lr_threshold": 1e9,  # nothing is an improvement
        "lr_scheduler_metric": "train_loss_epoch",
        "optimizer": "AdamW",
    }
    pyro.set_rng_seed(0)
    slowed = make(adata)
    start = slowed.module.guide.z_encoder.mean.weight.clone()
    slowed.train(plan_kwargs=schedule, **quiet)
    pyro.set_rng_seed(0)
    free = make(adata)
    free.train(plan_kwargs={"optimizer": "AdamW"}, **quiet)
    moved, freely = (
        float((m.module.guide.z_encoder.mean.weight - start).abs().sum().detach())
        for m in (slowed, free)
    )
    assert moved < 0.7 * freely


def test_indices_that_contradict_the_condition_are_refused(adata) -> None:
    model = make(adata)
    with pytest.raises(ValueError, match=r"background_indices.*condition"):
        model.train(np.arange(10, 14), np.arange(14, 26), max_epochs=1)
    with pytest.raises(ValueError, match=r"target_indices.*condition"):
        model.train(np.arange(10), np.arange(11, 26), max_epochs=1)
    model.train(np.arange(10), np.arange(14, 26), max_epochs=1, enable_progress_bar=False)


@pytest.mark.filterwarnings("ignore:Cell names repeat, e.g.")
def test_repeated_names_are_warned_of(adata) -> None:
    adata.obs_names = ["cell"] * 26
    model = make(adata, condition_key=None)
    with pytest.warns(UserWarning, match="names repeat"):
        model.train(np.arange(12), np.arange(12, 26), max_epochs=1, enable_progress_bar=False)


def test_early_stopping_that_would_never_look_is_refused(adata) -> None:
    with pytest.raises(ValueError, match="would never check"):
        make(adata).train(max_epochs=5, early_stopping=True, check_val_every_n_epoch=9)


def test_which_cells_trained_and_where_the_model_is(adata) -> None:
    model = make(adata)
    assert model.train_indices is None
    model.train(max_epochs=1, enable_progress_bar=False, train_size=0.5, validation_size=0.25)
    parts = (model.train_indices, model.validation_indices, model.test_indices)
    assert sorted(np.concatenate(parts).tolist()) == list(range(26))
    assert len(model.train_indices) == 13
    assert model.is_trained_
    assert model.device == torch.device("cpu")
    model.to_device("cpu")


def test_an_untrained_model_says_so_once(adata, caplog) -> None:
    model = make(adata)
    for _ in range(2):
        model.get_latent_representation()
        model.get_elbo()
    assert [r.levelname for r in caplog.records if "has not been trained" in r.message] == [
        "WARNING"
    ]
    caplog.clear()
    trained = make(adata)
    trained.train(max_epochs=1, enable_progress_bar=False)
    trained.get_latent_representation()
    assert "has not been trained" not in caplog.text


@pytest.mark.parametrize("max_epochs", [1, 2, 3])
def test_the_fast_schedule_takes_runs_of_few_steps(adata, max_epochs) -> None:
    result = make(adata).train(
        schedule="fast",
        max_epochs=max_epochs,
        check_val_every_n_epoch=None,
        enable_progress_bar=False,
        seed=0,
    )
    assert result.n_epochs == max_epochs
