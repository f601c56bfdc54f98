"""Training cells stay known by name when the data change after training, or it is said that not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

from pyro_contrastive import ContrastiveVI, compare_models
from pyro_contrastive.methods.interventions import query_under
from pyro_contrastive.testing import SimulationSettings, simulate

KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}
SMALL: dict[str, Any] = {"n_hidden": 8, "n_background_latent": 2, "n_salient_latent": 2}


def trained(adata: ad.AnnData, seed: int = 0) -> ContrastiveVI:
    model = ContrastiveVI(adata, **SMALL)
    model.train(
        max_epochs=1,
        train_size=0.6,
        validation_size=0.3,
        batch_size=64,
        seed=seed,
        enable_progress_bar=False,
    )
    return model


@pytest.fixture
def adata() -> ad.AnnData:
    made = simulate(SimulationSettings(n_background=30, n_target=30, n_genes=12), seed=0)
    made.obs_names = [f"c{i}" for i in range(60)]
    ContrastiveVI.setup_anndata(made, **KEYS)
    return made


@pytest.fixture
def model(adata: ad.AnnData) -> ContrastiveVI:
    return trained(adata)


def names(model: ContrastiveVI) -> list[set[str] | None]:
    parts = (model.train_indices, model.validation_indices, model.test_indices)
    assert model.adata is not None
    return [None if part is None else set(model.adata.obs_names[part]) for part in parts]


LESS = np.arange(60) >= 12
ORDER = np.random.default_rng(0).permutation(60)
CHANGES = {
    "removed in place": lambda m: m.adata._inplace_subset_obs(LESS),
    "reordered in place": lambda m: m.adata._inplace_subset_obs(ORDER),
    "both": lambda m: m.adata._inplace_subset_obs(ORDER[:40]),
    "a view": lambda m: setattr(m, "adata", m.adata[LESS]),
    "a copy": lambda m: setattr(m, "adata", m.adata[ORDER[:40]].copy()),
    "genes in another order": lambda m: setattr(
        m, "adata", m.adata[ORDER].copy()[:, list(range(12))[::-1]].copy()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_cells_are_found_by_name(model: ContrastiveVI, change: str) -> None:
    before = names(model)
    CHANGES[change](model)
    assert model.adata is not None
    left = set(model.adata.obs_names)
    assert names(model) == [part & left for part in before if part is not None]
    for part in (model.train_indices, model.validation_indices, model.test_indices):
        assert part.tolist() == sorted(part.tolist())


def rename_some(m: Any) -> None:
    m.adata.obs_names = ["new", *m.adata.obs_names[1:]]


def repeat_names(m: Any) -> None:
    m.adata._inplace_subset_obs(ORDER)
    m.adata.obs_names = ["c0"] * 60


def give_back_names(m: Any) -> None:
    """The names are those of before, in that order, but the cells have been moved."""
    before = m.adata.obs_names
    m.adata._inplace_subset_obs(ORDER)
    m.adata.obs_names = before


def replace_by_other_cells(m: Any) -> None:
    other = simulate(SimulationSettings(n_background=30, n_target=30, n_genes=12), seed=1)
    other.obs_names = m.adata.obs_names
    m.adata = other


def lose_a_gene(m: Any) -> None:
    m.adata = m.adata[:, 1:].copy()


UNKNOWN = [rename_some, repeat_names, give_back_names, replace_by_other_cells, lose_a_gene]


@pytest.mark.parametrize("change", UNKNOWN)
def test_cells_that_cannot_be_found_are_none(model: ContrastiveVI, change: Any) -> None:
    change(model)
    assert names(model) == [None, None, None]


@pytest.mark.parametrize("change", ["removed in place", "reordered in place", "both"])
def test_held_out_cells_of_a_comparison_are_by_name(adata: ad.AnnData, change: str) -> None:
    models = {name: trained(adata) for name in "ab"}
    seen = names(models["a"])[0]
    CHANGES[change](models["a"])
    found = compare_models(models, n_samples=25, silent=True)
    assert set(found.cells["cell"]) == set(adata.obs_names) - seen
    assert found.table["n_trained_on"].tolist() == [0, 0]


def test_models_of_copies_that_changed_differently(adata: ad.AnnData) -> None:
    models = {"a": trained(adata), "b": trained(adata.copy())}
    seen = names(models["a"])[0]
    models["b"].adata._inplace_subset_obs(ORDER[:5])  # its own data are not those compared on
    found = compare_models(models, n_samples=25, silent=True)
    assert set(found.cells["cell"]) == set(adata.obs_names) - seen


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize(
    ("change", "given"),
    # In data that are given, a cell of a new name is a new cell.
    [(rename_some, False), *((change, g) for change in UNKNOWN[1:4] for g in (False, True))],
)
def test_a_comparison_says_that_the_data_changed(
    adata: ad.AnnData, change: Any, given: bool
) -> None:
    models: dict[str, Any] = {"a": trained(adata), "b": trained(adata.copy())}
    change(models["a"])
    new = models["a"].adata
    chosen = new.copy() if given else None
    with pytest.raises(ValueError, match=r"changed since \['a'.*renamed.*indices="):
        compare_models(models, chosen, n_samples=25, silent=True)
    found = compare_models(models, chosen, indices=range(10), n_samples=25, silent=True)
    assert found.table["n_trained_on"].isna()["a"]


def test_new_cells_are_held_out(adata: ad.AnnData) -> None:
    models = {name: trained(adata) for name in "ab"}
    query = simulate(SimulationSettings(n_background=10, n_target=10, n_genes=12), seed=3)
    query.obs_names = [f"new{i}" for i in range(20)]
    both = ad.concat([adata[:20], query])
    found = compare_models(models, both, n_samples=25, silent=True)
    assert set(found.cells["cell"]) == set(both.obs_names) - names(models["a"])[0]


def test_donors_are_training_cells_by_name(model: ContrastiveVI) -> None:
    assert model.adata is not None
    before = model.adata.copy()

    def donors() -> set[str]:
        _, intervention = query_under(
            model, "treated", None, None, None, "aggregate_posterior", refine=False
        )
        assert intervention.donors is not None
        return set(model.adata.obs_names[intervention.donors.cells])

    expected = donors()
    assert expected == names(model)[0] & set(before.obs_names[30:])
    CHANGES["reordered in place"](model)
    assert donors() == expected


def test_saving_after_a_change(model: ContrastiveVI, adata: ad.AnnData, tmp_path: Path) -> None:
    full, before = adata.copy(), names(model)
    CHANGES["removed in place"](model)
    model.save(tmp_path / "model", save_anndata=True)
    assert names(ContrastiveVI.load(tmp_path / "model", full)) == before
    for other in (None, full[ORDER].copy()):  # a file holds no names of the cells in training
        loaded = ContrastiveVI.load(tmp_path / "model", other)
        assert names(loaded) == [None, None, None]
        with pytest.raises(ValueError, match="not known which cells"):
            compare_models({"a": loaded, "b": loaded}, n_samples=25, silent=True)


def test_data_given_to_a_loaded_model_may_change_too(
    model: ContrastiveVI, adata: ad.AnnData, tmp_path: Path
) -> None:
    model.save(tmp_path / "model")
    before = names(model)
    loaded = ContrastiveVI.load(tmp_path / "model", adata.copy())
    assert names(loaded) == before
    found = compare_models({"a": loaded, "b": model}, adata, n_samples=25, silent=True)
    assert set(found.cells["cell"]) == set(adata.obs_names) - before[0]
    CHANGES["removed in place"](loaded)
    assert names(loaded) == [None, None, None]


def test_a_copy_of_a_model_knows_its_cells(model: ContrastiveVI) -> None:
    twin = copy.deepcopy(model)
    before = names(model)
    CHANGES["both"](twin)
    assert names(model) == before
    left = set(twin.adata.obs_names)
    assert names(twin) == [part & left for part in before if part is not None]
