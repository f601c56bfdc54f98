"""Donors are named at setup, kept with models, and asked for where a column looks like them."""

from __future__ import annotations

import json
import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.testing import SimulationSettings, simulate

KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}


def cells_of(**columns: Any) -> ad.AnnData:
    """20 background and 30 target cells, with further columns, each repeated as needed."""
    adata = simulate(SimulationSettings(n_background=20, n_target=30, n_genes=6), seed=0)
    for name, values in columns.items():
        adata.obs[name] = pd.Series(np.resize(np.asarray(values), 50), adata.obs_names)
    return adata


def warned_of(adata: ad.AnnData, **keys: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ContrastiveVI.setup_anndata(adata, **(KEYS | keys))
    assert all(w.category is UserWarning and w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize(
    "name",
    ["donor", "donor_id", "Patient", "patientID", "Subject", "mouse", "sample", "orig.ident"],
)
@pytest.mark.parametrize("nested", [True, False])
def test_a_column_that_looks_like_donors_is_pointed_to(name, nested) -> None:
    donors = np.repeat(["a", "b", "c", "d", "e"], 10) if nested else ["a", "b", "c"]
    (said,) = warned_of(cells_of(**{name: donors}))
    assert said.startswith(f"adata.obs[{name!r}] looks like the donor")
    assert f"sample_key={name!r}" in said
    assert warned_of(cells_of(**{name: donors}), sample_key=name) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("donor", ["a"]),  # one for all
        ("sample", np.arange(50).astype(str)),  # one per cell
        ("sample", ["x"] * 20 + ["y"] * 30),  # the condition by another name
        ("patient_age", [40, 50, 60]),
        ("sample_quality", ["good", "bad"]),
        ("downsampled", ["yes", "no"]),
        ("group", ["a", "b", "c"]),
    ],
)
def test_other_columns_are_not(name, values) -> None:
    assert warned_of(cells_of(**{name: values})) == []


def test_columns_with_another_role_are_not_and_people_come_before_samples() -> None:
    donors = ["a", "b", "c"]
    assert warned_of(cells_of(donor=donors), batch_key="donor") == []
    assert warned_of(cells_of(donor=donors), categorical_covariate_keys=["donor"]) == []
    assert warned_of(cells_of(lane=donors, donor=donors), batch_key="lane") == []
    adata = cells_of(donor=donors)
    adata.obs["sample"] = adata.obs["donor"].astype(str) + adata.obs["condition"].astype(str)
    adata.obs = adata.obs[["sample", "donor", "condition"]]
    assert warned_of(adata)[0].startswith("adata.obs['donor']")
    assert warned_of(adata, batch_key="donor") == []
    ContrastiveVI.setup_anndata(adata)  # without a condition there is nothing to compare


def test_one_donor_on_a_side_is_warned_of() -> None:
    donors = ["a"] * 20 + ["b", "c", "d"] * 10
    (said,) = warned_of(cells_of(person=donors), sample_key="person")
    assert said.startswith("By adata.obs['person'], all background cells are from a.")
    (said,) = warned_of(cells_of(person=["a"] * 20 + ["b"] * 30), sample_key="person")
    assert "all background cells are from a and all target cells are from b" in said
    (said,) = warned_of(cells_of(), sample_key="condition")
    assert "all target cells are from treated" in said


def test_a_wrong_column_is_an_error() -> None:
    adata = cells_of(donor=["a", "b", None])
    with pytest.raises(ValueError, match=r"adata.obs\['donor'\] is missing \(NaN\) in 16 cells"):
        ContrastiveVI.setup_anndata(adata, **KEYS, sample_key="donor")
    with pytest.raises(KeyError, match="Do you mean 'donor'"):
        ContrastiveVI.setup_anndata(adata, **KEYS, sample_key="donors")
    with pytest.raises(TypeError, match="sample_key must be the name of a column"):
        ContrastiveVI.setup_anndata(adata, **KEYS, sample_key=adata.obs["donor"])


@pytest.mark.filterwarnings("ignore:.*more than there are genes")
def test_the_column_is_kept_with_data_and_model(tmp_path) -> None:
    adata = cells_of(donor=["a", "b", "c"])
    ContrastiveVI.setup_anndata(adata, **KEYS, sample_key="donor")
    model = ContrastiveVI(adata, n_hidden=4)
    assert model.get_setup_arg("sample_key") == "donor"
    model.save(tmp_path / "model")
    assert ContrastiveVI.load(tmp_path / "model").setup.sample_key == "donor"
    others = adata[:10].copy()
    others.obs["donor"] = "z"  # other donors are no obstacle
    assert model.get_latent_representation(others).shape == (10, 10)


def test_a_setup_of_before_donors_is_read() -> None:
    adata = cells_of()
    ContrastiveVI.setup_anndata(adata, **KEYS)
    before = json.loads(Setup.of(adata).to_json())
    del before["sample_key"]
    assert Setup.from_json(json.dumps(before)) == Setup.of(adata)
