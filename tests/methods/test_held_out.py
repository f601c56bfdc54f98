"""Which cells did not train the model, and that verdicts and intervals are of these by default."""

from __future__ import annotations

import logging
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pyro_contrastive import ContrastiveVI

N = 120
FEW: dict[str, Any] = {"n_samples": 39, "seed": 0, "silent": True}


def coin(n_genes: int = 12) -> ad.AnnData:
    """Counts of two cell types, and a condition decided by a coin."""
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=N)
    rate = np.where(kind[:, None] == (np.arange(n_genes) < 6), 6.0, 2.0)
    condition = np.where(rng.random(N) < 0.5, "control", "treated")
    obs = pd.DataFrame({"condition": condition}, index=[f"cell {i}" for i in range(N)])
    return ad.AnnData(rng.poisson(rate).astype(np.float32), obs=obs)


def fitted(train_size: float = 0.6, **kwargs: Any) -> ContrastiveVI:
    adata = coin()
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    model = ContrastiveVI(adata, n_hidden=8, n_background_latent=2, n_salient_latent=2)
    model.train(max_epochs=2, train_size=train_size, seed=0, enable_progress_bar=False, **kwargs)
    return model


@pytest.fixture(scope="module")
def model() -> ContrastiveVI:
    return fitted()


def test_held_out_cells_are_all_that_did_not_train(model, tmp_path) -> None:
    held_out = model.held_out_indices
    assert len(held_out) == 47
    np.testing.assert_array_equal(
        np.sort(np.concatenate([held_out, model.train_indices])), np.arange(N)
    )
    model.save(tmp_path / "model")
    loaded = ContrastiveVI.load(tmp_path / "model", model.adata)
    np.testing.assert_array_equal(loaded.held_out_indices, held_out)
    split = fitted(0.5, validation_size=0.3)
    assert len(split.held_out_indices) == len(split.validation_indices) + len(split.test_indices)
    fresh = ContrastiveVI(coin_set_up(), n_hidden=8)
    assert fresh.held_out_indices is None


def coin_set_up() -> ad.AnnData:
    adata = coin()
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    return adata


def test_effects_are_of_cells_that_did_not_train_and_refined(model, caplog) -> None:
    held_out = model.held_out_indices
    with caplog.at_level(logging.WARNING):
        effect = model.get_treatment_effect(**FEW)
        other = model.get_treatment_effect(indices=held_out, refine=True, **FEW)
    assert not caplog.records
    assert list(effect["mean"].index) == list(model.adata.obs_names[held_out])
    for name in ("mean", "lower", "upper"):
        pd.testing.assert_frame_equal(effect[name], other[name])


def test_intervals_of_cells_that_trained_are_said_to_be_too_narrow(caplog) -> None:
    model = fitted()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = model.get_treatment_effect(indices=range(N), refine=False, **FEW)
    assert len(found["mean"]) == N
    assert [r.message for r in caplog.records if "73 of these 120 cells trained" in r.message] != []
    assert len(caplog.records) == 1


def test_other_cells_are_recognised(model) -> None:
    """Some that trained, some that did not, and one that is new, in another order."""
    adata = coin()[::-1][:50].copy()
    adata.obs_names = [*adata.obs_names[:-1], "new"]
    seen = set(model.adata.obs_names[model.train_indices])
    expected = [name for name in adata.obs_names if name not in seen]
    assert list(model.get_treatment_effect(adata, **FEW)["mean"].index) == expected
    assert "new" in expected


def test_all_cells_answer_where_all_of_them_trained(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        model = fitted(1.0)
        assert len(model.get_treatment_effect(**FEW)["mean"]) == N
    assert "120 of these 120 cells trained" in caplog.text


def test_a_diagnosis_is_of_cells_that_did_not_train(model, caplog) -> None:
    some: dict[str, Any] = {"n_khat_cells": 2, "n_permutations": 2, "silent": True}
    row = model.diagnose(**some).loc["cells"]
    assert (row["value"], row["verdict"]) == (47, "good")
    assert "that did not train the model" in row["reading"]
    asked = model.diagnose(indices=range(N), **some).loc["cells"]
    assert (asked["value"], asked["verdict"]) == (120, "look")
    assert "of which 73 trained the model:" in asked["reading"]
    few = fitted(0.9)
    with caplog.at_level(logging.WARNING):
        row = few.diagnose(**some).loc["cells"]
    assert "trained the model, because too few did not" in row["reading"]
    assert "Too few cells did not train to judge" in caplog.text


def test_scores_are_of_cells_that_did_not_train_and_have_a_level_of_chance(model) -> None:
    from pyro_contrastive.analysis.separation import score_latents

    found = model.score_latents(seed=0)
    cells = model.held_out_indices
    latents = [
        model.get_latent_representation(indices=cells, representation_kind=kind)
        for kind in ("background", "salient")
    ]
    condition = model.adata.obs["condition"].iloc[cells].to_numpy()
    given: dict[str, Any] = {"background_category": "control", "n_neighbors": len(cells) // 4}
    expected = score_latents(*latents, condition, seed=0, **given)
    pd.testing.assert_frame_equal(found, expected)
    mixing = found.query("measure == 'mixing'")
    assert (mixing["chance"] - 1).abs().max() < 0.1
    with pytest.raises(KeyError, match="kind"):
        model.score_latents(labels_key="kind")


def test_chance_is_the_score_of_shuffled_labels() -> None:
    """In closed form: an ARI of 0, an even mixture, and for what separates the same chance."""
    from pyro_contrastive.analysis.separation import score_latents

    rng = np.random.default_rng(0)
    condition, kind = np.repeat(["a", "b"], 150), np.tile(["x", "y"], 150)
    z = rng.normal(size=(300, 2)) + 20 * (kind == "y")[:, None]
    s = rng.normal(size=(300, 2)) + 20 * (condition == "b")[:, None]
    scores = score_latents(z, s, condition, labels=kind, background_category="a")
    table = scores.set_index(["latent", "of", "measure"])
    assert table.loc[("background", "labels", "ARI"), ["value", "chance"]].tolist() == [
        1.0,
        pytest.approx(0.0, abs=0.02),
    ]
    assert table.loc[("salient", "condition", "mixing"), "value"] == 0
    assert table.loc[("salient", "condition", "mixing"), "chance"] == pytest.approx(1, abs=0.03)
    assert table.loc[("salient", "condition", "silhouette"), "chance"] == pytest.approx(0, abs=0.02)
