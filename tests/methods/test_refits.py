"""The same model fitted again: to shuffled conditions, and without a fold of the cells."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from saved_files import as_format_1

from pyro_contrastive import ContrastiveVI, Gaussian
from pyro_contrastive.testing import TreatmentSettings, simulate_treatment

QUIET: dict[str, Any] = {"enable_progress_bar": False}


def fitted(
    share_affected: float, n: int = 80, sample_key: str | None = None, **kwargs: Any
) -> ContrastiveVI:
    settings = TreatmentSettings(
        n, n, 40, 2, share_affected=share_affected, smallest_lfc=2.0, largest_lfc=4.0
    )
    adata = simulate_treatment(settings, seed=0)
    adata.obs["donor"] = "the only one"
    ContrastiveVI.setup_anndata(
        adata,
        condition_key="condition",
        background="control",
        labels_key="cell_type",
        sample_key=sample_key,
    )
    torch.manual_seed(0)
    model = ContrastiveVI.from_preset(adata, "separated", 2, 2, n_hidden=16)
    arguments = {
        "schedule": "fast",
        "train_size": 0.6,
        "seed": 0,
        "max_epochs": 15,
        "batch_size": 8,
    } | QUIET
    model.train(**(arguments | kwargs))
    return model


@pytest.fixture(scope="module")
def model() -> ContrastiveVI:
    return fitted(0.3)


@pytest.fixture(scope="module")
def brief() -> ContrastiveVI:
    """One that has not learned much, for questions that do not ask for it."""
    return fitted(0.3, max_epochs=4)


def state_of(model: ContrastiveVI) -> list[Any]:
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}
    return [weights, model.adata.obs.copy(), torch.get_rng_state(), np.random.get_state()[1].copy()]  # noqa: NPY002


def assert_unchanged(model: ContrastiveVI, before: list[Any]) -> None:
    weights, obs, torch_state, numpy_state = state_of(model)
    assert all(torch.equal(value, before[0][name]) for name, value in weights.items())
    pd.testing.assert_frame_equal(obs, before[1])
    assert torch.equal(torch_state, before[2])
    np.testing.assert_array_equal(numpy_state, before[3])


def test_a_response_exceeds_shuffled_conditions_and_nothing_changes(model) -> None:
    before, history = state_of(model), model.history
    found = model.null_check(1, seed=0)
    assert found.answer == "response"
    assert found.within == ("cell_type",)
    assert found.table["stands_out"].sum() >= 2
    assert {"genes", "intervals", "nats", "separation"} == set(found.table.index)
    assert found.table.loc["genes", "observed"] > 3 > found.table.loc["genes", "null_max"]
    assert_unchanged(model, before)
    pd.testing.assert_frame_equal(model.history["elbo_train"], history["elbo_train"])


@pytest.mark.slow
def test_a_null_check_is_the_same_with_the_same_seed(model) -> None:
    found, again, other = (model.null_check(2, seed=seed).table for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(again, found)
    assert (other["shuffle 1"] != found["shuffle 1"]).any()


@pytest.mark.slow
def test_nothing_is_found_where_there_is_nothing() -> None:
    found = fitted(0.0).null_check(2)
    assert found.answer == "none"
    assert found.verdict.startswith("No response found")


def test_the_same_fit_again_is_the_same_fit(brief) -> None:
    """From the same initial weights by the same calls, so that nothing but the labels differs."""
    from pyro_contrastive.methods.refit import refitted

    again = refitted(brief, brief.adata, 0, {})
    for name, value in brief.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    twice = fitted(0.3, max_epochs=2)
    twice.train(max_epochs=1, seed=0, **QUIET)
    repeated = refitted(twice, twice.adata, 0, {})
    assert repeated.history["elbo_train"].index.tolist() == [0, 1, 2]
    for name, value in twice.module.state_dict().items():
        assert torch.equal(value, repeated.module.state_dict()[name]), name


def test_null_checks_that_cannot_be_made_say_why(brief, tmp_path) -> None:
    model = brief
    with pytest.raises(ValueError, match="n_shuffles must be at least 1"):
        model.null_check(0)
    with pytest.raises(KeyError, match="patient"):
        model.null_check(within="patient")
    with pytest.raises(ValueError, match="cannot be shuffled"):
        model.null_check(within=["condition"])
    with pytest.raises(ValueError, match="10 cells of each population"):
        fitted(0.3, train_size=0.95, max_epochs=1).null_check()
    model.save(tmp_path / "model")
    as_format_1(tmp_path / "model")
    with pytest.raises(ValueError, match="was not trained, or was saved by a version that did not"):
        ContrastiveVI.load(tmp_path / "model", model.adata).null_check()
    by_hand = model.adata.copy()
    ContrastiveVI.setup_anndata(by_hand)
    unnamed = ContrastiveVI(by_hand, n_hidden=8)
    unnamed.train(range(80), range(80, 160), max_epochs=1, **QUIET)
    with pytest.raises(ValueError, match="condition_key="):
        unnamed.null_check()


@pytest.mark.filterwarnings("ignore:.*more than there are genes")
@pytest.mark.filterwarnings("ignore:.* does not hold raw counts")
def test_measures_that_do_not_apply_are_left_out() -> None:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"condition": np.repeat(["control", "treated"], 60)})
    obs.index = obs.index.astype(str)
    adata = ad.AnnData(rng.normal(size=(120, 6)).astype(np.float32), obs=obs)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    model = ContrastiveVI(adata, n_hidden=8, likelihood=Gaussian(log1p=False))
    model.train(max_epochs=1, train_size=0.5, seed=0, **QUIET)
    assert list(model.null_check(1).table.index) == ["nats", "separation"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:By adata.obs:UserWarning")
def test_cells_are_counted_where_there_are_too_few_donors() -> None:
    """One donor with both conditions: the genes are those of a test with cells as replicates."""
    donor = fitted(0.3, sample_key="donor", max_epochs=2)
    cells = fitted(0.3, max_epochs=2)
    found = donor.null_check(1).table.loc["genes"]
    table = cells.differential_expression(mode="means", seed=0)
    assert found["observed"] == table["is_de_fdr_0.05"].sum() > 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:By adata.obs:UserWarning")
def test_the_diagnosis_counts_cells_too_where_there_are_too_few_donors() -> None:
    donor = fitted(0.3, sample_key="donor", max_epochs=2)
    cells = fitted(0.3, max_epochs=2)
    table = cells.differential_expression(mode="means", seed=0)
    diagnosis = donor.diagnose(n_khat_cells=2, n_permutations=2, silent=True)
    row = diagnosis.loc["genes that differ"]
    assert row["reading"].startswith("Not tested. There are too few donors")
    row = cells.diagnose(n_khat_cells=2, n_permutations=2, silent=True).loc["genes that differ"]
    assert row["value"] == table["is_de_fdr_0.05"].sum()


@pytest.fixture(scope="module")
def fits(brief):
    before = state_of(brief)
    made = brief.cross_fit(2, seed=0)
    assert_unchanged(brief, before)
    return made


def test_each_model_of_a_cross_fit_has_not_seen_its_cells(brief, fits) -> None:
    model = brief
    codes = (model.adata.obs["condition"] == "treated").to_numpy()
    assert len(fits.models) == 2
    for fold, fit in enumerate(fits.models):
        own = np.flatnonzero(fits.folds == fold)
        np.testing.assert_array_equal(fit.test_indices, own)
        assert not set(own) & {*fit.train_indices, *fit.validation_indices}
        assert abs(int(codes[own].sum()) * 2 - len(own)) <= 2
        assert "restored" in fit.history  # stopped on cells that are not of its fold


def test_answers_of_a_cross_fit_come_from_the_right_model_in_the_order_asked(brief, fits) -> None:
    model = brief
    cells = [150, 3, 90, 91, 4]
    few: dict[str, Any] = {"n_samples": 39, "silent": True}
    effect = fits.get_treatment_effect(cells, seed=0, **few)
    assert list(effect["mean"].index) == list(model.adata.obs_names[cells])
    for fold, fit in enumerate(fits.models):
        own = [cell for cell in cells if fits.folds[cell] == fold]
        if own:
            expected = fit.get_treatment_effect(indices=own, seed=0, **few)["upper"]
            pd.testing.assert_frame_equal(effect["upper"].loc[expected.index], expected)
    draws = fits.get_counterfactual_expression("control", cells, return_mean=False, seed=0, **few)
    assert draws.shape == (39, 5, 40)
    both = fits.get_normalized_expression(seed=0)
    assert set(both) == {"background", "salient"}
    assert list(both["salient"].index) == list(model.adata.obs_names)
    elbo = fits.get_elbo(cells, seed=0)
    one = fits.models[fits.folds[150]].get_elbo(indices=[150], return_mean=False, seed=0)
    assert (elbo.shape, np.isfinite(one).all()) == ((5,), True)


@pytest.mark.slow
def test_the_diagnosis_of_a_cross_fit_is_of_cells_that_did_not_train(fits) -> None:
    table = fits.diagnose(n_khat_cells=3, n_permutations=2, silent=True)
    assert table.loc["cells", "verdict"] == "good"
    assert table.loc["cells", "value"] == pytest.approx(80)
    values = table.loc["condition in s", ["value 1", "value 2"]]
    assert table.loc["condition in s", "value"] == pytest.approx(values.mean())


def test_cross_fits_that_cannot_be_made_say_why(brief, fits) -> None:
    model = brief
    for n_folds in (1, 81):
        with pytest.raises(ValueError, match="from 2 to the size of the smallest condition, 80"):
            model.cross_fit(n_folds)
    with pytest.raises(TypeError, match="cells of its own fold"):
        fits.get_treatment_effect(adata=model.adata)
    with pytest.raises(ValueError, match="selects no cells"):
        fits.get_treatment_effect([])
    with pytest.raises(ValueError, match="no meaning for several models"):
        fits.get_normalized_expression(n_samples_overall=3)
