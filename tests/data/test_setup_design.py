"""Designs in which background and target cannot be compared are warned of at setup."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.testing import SimulationSettings, simulate

KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}


def cells_of(n_background: int = 20, n_target: int = 30) -> ad.AnnData:
    sizes = SimulationSettings(n_background=n_background, n_target=n_target, n_genes=6)
    return simulate(sizes, seed=0)


def is_target(adata: ad.AnnData) -> np.ndarray:
    return (adata.obs["condition"] != "control").to_numpy()


def warned_of(adata: ad.AnnData, **keys: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ContrastiveVI.setup_anndata(adata, **(KEYS | keys))
    assert all(w.category is UserWarning and w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


def test_a_patient_who_was_treated_once_is_confounded_with_the_treatment() -> None:
    adata = cells_of()
    n = np.arange(adata.n_obs)
    adata.obs["patient"] = np.where(is_target(adata), n % 3 + 3, n % 3).astype(str)
    (said,) = warned_of(adata, batch_key="patient")
    assert said.startswith("No value of adata.obs['patient'] occurs in both background and target")
    for part in (
        "determines adata.obs['condition']",
        "salient latent",
        "background latent",
        "Leave the",
    ):
        assert part in said


@pytest.mark.parametrize("role", ["batch_key", "categorical_covariate_keys"])
def test_the_condition_by_another_name_is_confounded(role: str) -> None:
    adata = cells_of()
    adata.obs["plate"] = np.where(is_target(adata), "p1", "p2")
    keys = {role: "plate" if role == "batch_key" else ["plate"]}
    assert len(warned_of(adata, **keys)) == 1


def test_batch_and_covariate_are_named_in_one_warning() -> None:
    adata = cells_of()
    adata.obs["plate"] = adata.obs["day"] = np.where(is_target(adata), "1", "2")
    adata.obs["fine"] = pd.Series(np.resize(["a", "b"], 50), adata.obs_names)
    covariates = {"categorical_covariate_keys": ["fine", "day"]}
    (said,) = warned_of(adata, batch_key="plate", **covariates)
    assert "adata.obs['plate'] and adata.obs['day'] occurs" in said
    assert "fine" not in said


@pytest.mark.parametrize("shared", [1, 5])
def test_one_cell_in_both_is_enough_not_to_be_warned(shared: int) -> None:
    adata = cells_of()
    plate = np.where(is_target(adata), "p1", "p2")
    plate[np.flatnonzero(is_target(adata))[:shared]] = "p2"
    adata.obs["plate"] = plate
    assert not any("No value of" in said for said in warned_of(adata, batch_key="plate"))


def test_one_batch_or_no_condition_is_no_confounding() -> None:
    adata = cells_of()
    adata.obs["one"] = "x"
    adata.obs["plate"] = np.where(is_target(adata), "p1", "p2")
    (said,) = warned_of(adata, batch_key="one")
    assert said.startswith("adata.obs['one'] is 'x' in all cells")
    assert warned_of(adata, batch_key="plate", condition_key=None, background=None) == []
    assert warned_of(adata, labels_key="plate") == []  # no network is told of labels


def test_several_treatments_may_be_confounded_with_each_other() -> None:
    """Treatments apart from each other are not our question: each is compared to background."""
    adata = cells_of(20, 40)
    adata.obs["drug"] = ["none"] * 20 + ["a"] * 20 + ["b"] * 20
    adata.obs["plate"] = ["1"] * 10 + ["2"] * 10 + ["1"] * 20 + ["2"] * 20
    assert warned_of(adata, condition_key="drug", background="none", batch_key="plate") == []


@pytest.mark.parametrize(
    ("n_background", "n_target", "said"),
    [
        (1, 30, "There is only 1 background cell, which is fewer than 10"),
        (9, 30, "There are only 9 background cells, which is fewer than 10"),
        (30, 9, "There are only 9 target cells, which is fewer than 10"),
        (2, 3, "There are only 2 background cells and 3 target cells"),
    ],
)
def test_few_cells_are_warned_of(n_background: int, n_target: int, said: str) -> None:
    (found,) = warned_of(cells_of(n_background, n_target))
    assert found.startswith(said)


@pytest.mark.filterwarnings("ignore:.*more than there are genes")
def test_ten_cells_are_enough_and_one_of_them_is_held_out() -> None:
    adata = cells_of(10, 10)
    assert warned_of(adata) == []
    model = ContrastiveVI(adata, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu", seed=0)
    assert "elbo_validation" in model.history
