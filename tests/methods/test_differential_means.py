"""Differential expression by tests of means: on simulated truth, on nothing, and asked wrongly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch
from scipy.stats import false_discovery_control
from small_model import make, small_adata

from pyro_contrastive import ContrastiveVI, Gaussian
from pyro_contrastive.analysis.means.compare import compare_means
from pyro_contrastive.analysis.means.settings import MeansSettings
from pyro_contrastive.testing import TreatmentSettings, simulate_treatment


def truth(**changes: Any):
    settings = TreatmentSettings(n_background=300, n_target=300, n_genes=200, **changes)
    return simulate_treatment(settings, seed=0)


def model_of(adata) -> ContrastiveVI:
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    torch.manual_seed(0)
    return ContrastiveVI(adata, n_hidden=16, n_background_latent=4, n_salient_latent=2)


@pytest.fixture(scope="module")
def other_types():
    """Treated cells of other types than the controls, and a model that was not trained."""
    adata = truth(type_shift=2.0)
    return adata, model_of(adata)


def rates(adata, table) -> tuple[float, float]:
    """False discovery rate, and the share found of the genes that change by a quarter or more."""
    table = table.loc[adata.var_names]
    found, lfc = table["is_de_fdr_0.05"].to_numpy(), adata.var["lfc"].to_numpy()
    false = (found & (lfc == 0)).sum() / max(found.sum(), 1)
    return false, found[np.abs(lfc) >= 0.25].mean()


def test_within_the_true_types_composition_is_no_effect(other_types) -> None:
    adata, model = other_types
    table = model.differential_expression(mode="means", strata="cell_type")
    false, power = rates(adata, table)
    assert false < 0.1
    assert power > 0.8
    everywhere, _ = rates(adata, model.differential_expression(mode="means", strata=1))
    assert everywhere > 0.2  # which is why there are strata
    assert list(table["p_value"]) == sorted(table["p_value"])
    error = table.loc[adata.var_names, "lfc"] - adata.var["lfc"]
    assert np.sqrt((error**2).mean()) < 0.25
    inside = (table["lower"] <= adata.var["lfc"].loc[table.index]) & (
        adata.var["lfc"].loc[table.index] <= table["upper"]
    )
    assert inside.mean() > 0.9
    assert set(table["comparison"]) == {"treated vs control"}


def test_numbers_are_those_of_the_same_regression_by_statsmodels(other_types) -> None:
    adata, model = other_types
    table = model.differential_expression(mode="means", strata="cell_type")
    x = adata.X.toarray()
    side = (adata.obs["condition"] == "treated").to_numpy()
    design = np.column_stack([pd.get_dummies(adata.obs["cell_type"]), side]).astype(float)
    for gene in table.index[:5]:
        column = x[:, adata.var_names.get_loc(gene)]
        family = sm.families.Poisson()
        fit = sm.GLM(column, design, family, offset=np.log(x.sum(1))).fit(cov_type="HC0")
        assert table.loc[gene, "lfc"] == pytest.approx(fit.params[-1] / np.log(2), abs=0.01)
        assert table.loc[gene, "lfc_se"] == pytest.approx(fit.bse[-1] / np.log(2), rel=0.03)
    at = table.columns.get_loc("p_value")
    assert list(table.columns[at + 1 : at + 3]) == ["p_adj", "is_de_fdr_0.05"]
    adjusted = false_discovery_control(table["p_value"])
    np.testing.assert_allclose(table["p_adj"], adjusted)


def test_every_type_by_itself(other_types) -> None:
    adata, model = other_types
    table = model.differential_expression(mode="means", strata="cell_type", by_stratum=True)
    assert set(table["stratum"]) == set(adata.obs["cell_type"])
    one = table[table["stratum"] == "type 1"].loc[adata.var_names]
    only = adata[adata.obs["cell_type"] == "type 1"].copy()
    alone = model.differential_expression(only, mode="means", strata=1).loc[adata.var_names]
    np.testing.assert_allclose(one["lfc"], alone["lfc"], rtol=1e-6)
    np.testing.assert_allclose(one["p_value"], alone["p_value"], rtol=1e-6)
    assert one["n_cells1"].iloc[0] == (only.obs["condition"] == "treated").sum()


def test_a_threshold_asks_for_larger_changes(other_types) -> None:
    adata, model = other_types
    settings: dict[str, Any] = {"mode": "means", "strata": "cell_type"}
    any_change = model.differential_expression(**settings)
    large = model.differential_expression(lfc_threshold=1.0, **settings)
    lfc = adata.var["lfc"].abs()
    found = large.index[large["is_de_fdr_0.05"]]
    assert 0 < len(found) < any_change["is_de_fdr_0.05"].sum()
    assert (lfc[found] > 0.8).mean() > 0.9
    assert (large["p_value"] >= any_change["p_value"].loc[large.index] - 1e-12).all()
    assert (large.loc[large["lfc"].abs() < 1, "p_value"] == 1).all()


def test_nothing_is_found_in_a_coin_toss() -> None:
    adata = truth(share_affected=0.0)
    adata.obs["condition"] = np.where(np.random.default_rng(1).random(600) < 0.5, "a", "b")
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="a")
    model = ContrastiveVI(adata, n_hidden=16)
    table = model.differential_expression(mode="means", seed=0)
    assert table["is_de_fdr_0.05"].sum() == 0
    assert (table["p_value"] < 0.05).mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"type_shift": 2.0}, {"treated_depth": 0.4}])
def test_strata_of_a_trained_background_latent_replace_the_types(changes) -> None:
    adata = simulate_treatment(TreatmentSettings(**changes), seed=0)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    torch.manual_seed(0)
    model = ContrastiveVI.from_preset(adata, "separated")
    model.train(schedule="fast", early_stopping=True, seed=0, enable_progress_bar=False)
    false, power = rates(adata, model.differential_expression(mode="means", seed=0))
    _, with_types = rates(adata, model.differential_expression(mode="means", strata="cell_type"))
    assert false < 0.1
    assert power > 0.9 * with_types


def test_genes_that_cannot_be_tested_say_why() -> None:
    adata = small_adata()
    x = adata.X.toarray()
    x[:, 0], x[:, 1] = 0.0, 0.0
    x[0, 1] = 3.0
    adata.X = x
    model = make(adata)
    table = model.differential_expression(mode="means", strata=1)
    assert table.loc["gene0", "not_tested"] == "no counts"
    assert table.loc["gene1", "not_tested"] == "fewer than 10 counts"
    untested = table["not_tested"] != ""
    assert not table.loc[untested, "is_de_fdr_0.05"].any()
    assert table.loc[untested, ["lfc", "p_value", "p_adj"]].isna().all(axis=None)
    assert table.loc[~untested, ["lfc", "lfc_se", "p_value", "p_adj"]].notna().all(axis=None)
    assert list(table.index[-2:]) == ["gene0", "gene1"]


def test_treatments_batches_query_data_and_selections() -> None:
    adata = small_adata()
    model = make(adata, "three")
    table = model.differential_expression(mode="means", strata=1, fewest_cells=2)
    assert set(table["comparison"]) == {"drug1 vs control", "drug2 vs control"}
    assert len(table) == 30
    assert set(table["n_strata"]) == {2}  # one per batch
    reordered = adata[::-1, ::-1].copy()
    again = model.differential_expression(reordered, mode="means", strata=1, fewest_cells=2)
    one, other = (t[t["group1"] == "drug1"].sort_index() for t in (table, again))
    pd.testing.assert_frame_equal(one, other)
    by_index = model.differential_expression(
        mode="means", strata=1, fewest_cells=2, idx1=np.arange(12, 19), idx2=np.arange(12)
    )
    assert "comparison" not in by_index
    np.testing.assert_allclose(by_index["lfc"].sort_index(), one["lfc"])
    with_clusters = model.differential_expression(mode="means", fewest_cells=2, seed=0)
    assert with_clusters["lfc"].notna().any()


def test_size_factors_take_the_place_of_totals() -> None:
    adata = small_adata()
    adata.obs["factor"] = np.where(np.arange(26) < 12, 1.0, 4.0)
    ContrastiveVI.setup_anndata(
        adata, condition_key="condition", background="control", size_factor_key="factor"
    )
    model = ContrastiveVI(adata, n_hidden=8)
    table = model.differential_expression(mode="means", strata=1)
    counts = adata.X.toarray()
    plain = np.log2(counts[12:].mean(0) / counts[:12].mean(0))
    plain = pd.Series(plain, index=adata.var_names).loc[table.index]
    np.testing.assert_allclose(table["lfc"], plain - 2.0, atol=0.05)


def test_a_confounded_batch_is_an_error() -> None:
    adata = small_adata()
    adata.obs["lane"] = np.where(np.arange(26) < 12, "a", "b")
    with pytest.warns(UserWarning, match="occurs in both"):
        model = make(adata)
    with pytest.raises(ValueError, match="No stratum has at least 5 cells of both groups"):
        model.differential_expression(mode="means")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"delta": 0.5}, ValueError, r"delta has no effect with mode=.means. \(use lfc_threshold"),
        ({"n_samples": 25}, ValueError, "n_samples has no effect"),
        ({"target_idx": [1]}, ValueError, "target_idx has no effect"),
        ({"n_samples_overall": 9}, TypeError, "takes no n_samples_overall"),
        ({"strata": 0}, ValueError, "strata must be at least 1, not 0"),
        ({"strata": 2.5}, TypeError, "a column of adata.obs or a number of clusters"),
        ({"strata": "kind"}, KeyError, "kind"),
        ({"interval": 95}, ValueError, "interval must be between 0 and 1, not 95"),
        ({"lfc_threshold": -1}, ValueError, "lfc_threshold must be at least 0, not -1"),
        ({"fewest_cells": 1}, ValueError, "fewest_cells must be at least 2, not 1"),
    ],
)
def test_wrong_arguments(arguments, error, message) -> None:
    model = make(small_adata())
    with pytest.raises(error, match=message):
        model.differential_expression(mode="means", **arguments)


def test_data_that_are_not_counts_are_refused() -> None:
    adata = small_adata()
    adata.layers["logs"] = np.log1p(adata.X.toarray())
    with pytest.warns(UserWarning, match="does not hold raw counts"):
        ContrastiveVI.setup_anndata(
            adata, layer="logs", condition_key="condition", background="control"
        )
    model = ContrastiveVI(adata, likelihood=Gaussian())
    with pytest.raises(ValueError, match="compares counts with a library size, which Gaussian"):
        model.differential_expression(mode="means")


def test_cells_without_counts_are_left_out() -> None:
    adata = small_adata()
    x = adata.X.toarray()
    x[[3, 20]] = 0.0
    adata.X = x
    with pytest.warns(UserWarning, match="2 of 26 cells have no counts"):
        model = make(adata)
    table = model.differential_expression(mode="means", strata=1)
    assert table["n_cells1"].iloc[0] == 13
    assert table["n_cells2"].iloc[0] == 11
    assert np.isfinite(table["lfc"]).all()


def test_strata_of_one_group_are_left_out() -> None:
    rng = np.random.default_rng(0)
    x = rng.poisson(3.0, (60, 4)).astype(float)
    strata, side = np.repeat([0, 1, 2], 20), np.tile([True, False], 30)
    side[40:] = True  # the last stratum has one group only
    settings = MeansSettings()
    sizes = np.ones(60)
    table = compare_means(x, sizes, strata, side, pd.Index(list("abc")), settings)
    assert table["n_strata"].iloc[0] == 2
    assert table["n_cells1"].iloc[0] == 20
