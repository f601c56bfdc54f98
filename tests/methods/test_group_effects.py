"""The table of effects by group and sample: on simulated truth, by hand, and asked wrongly."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.stats import ttest_1samp, ttest_ind
from small_model import make, small_adata

from pyro_contrastive import ContrastiveVI, Gaussian
from pyro_contrastive.analysis.means import decoded_sums
from pyro_contrastive.testing import TreatmentSettings, simulate_treatment

NUMBERS = ["lfc", "lower", "upper", "model_lfc", "treated_mean", "background_mean"]


def model_of(adata, **setup: Any) -> ContrastiveVI:
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control", **setup)
    torch.manual_seed(0)
    return ContrastiveVI(adata, n_hidden=16, n_background_latent=4, n_salient_latent=2)


def of_donors(n_donors: int, *, paired: bool, seed: int, spread: float = 0.4) -> ad.AnnData:
    """Poisson counts of donors that differ in every gene, where the condition does nothing.

    Paired, every donor has both kinds of cells and its own response, which is 0 on average.
    """
    rng = np.random.default_rng(seed)
    n_cells, n_genes = 40 * n_donors, 150
    donor = np.arange(n_cells) % n_donors
    treated = rng.random(n_cells) < 0.5 if paired else donor % 2 == 1
    shift = rng.normal(0, spread, (n_donors, n_genes)) * np.log(2)
    response = rng.normal(0, spread, (n_donors, n_genes)) * np.log(2) * paired
    rate = 4 * np.exp(shift[donor] + response[donor] * treated[:, None])
    obs = pd.DataFrame(
        {
            "condition": np.where(treated, "treated", "control"),
            "donor": [f"d{k}" for k in donor],
            "factor": 1.0,
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    return ad.AnnData(csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs)


def explained(table: pd.DataFrame) -> bool:
    """Tell whether every missing number has a reason."""
    return bool((table["not_estimated"] != "")[table[NUMBERS].isna().any(axis=1)].all())


@pytest.fixture(scope="module")
def other_types():
    adata = simulate_treatment(
        TreatmentSettings(type_shift=2.0, treated_depth=0.5, n_genes=300), seed=1
    )
    return adata, model_of(adata)


def test_intervals_cover_the_true_effect_on_every_type(other_types) -> None:
    adata, model = other_types
    table = model.get_group_effects(groupby="cell_type", strata=1, n_samples=1, seed=0)
    assert list(table["group"].unique()) == sorted(set(adata.obs["cell_type"]))
    treated = (adata.obs["condition"] == "treated").to_numpy()
    unchanged = (adata.var["lfc"] == 0).to_numpy()
    inside, null = [], []
    for name, rows in table.groupby("group"):
        cells = treated & (adata.obs["cell_type"] == name).to_numpy()
        with_it, without = (adata.layers[k][cells].mean(0) for k in ("scale", "untreated"))
        truth = np.where(unchanged, 0.0, np.log2(with_it / without))
        own = rows.loc[adata.var_names]
        there = own["lfc"].notna().to_numpy()
        assert there.mean() > 0.7
        covered = (own["lower"] <= truth) & (truth <= own["upper"])
        inside.append(covered[there & ~unchanged])
        null.append(covered[there & unchanged])
        assert own["n_cells"].iloc[0] == cells.sum()
    assert np.concatenate(null).mean() == pytest.approx(0.95, abs=0.025)
    # Responses of cells are common to all changed genes, so that their errors go together.
    assert np.concatenate(inside).mean() == pytest.approx(0.95, abs=0.05)
    assert explained(table)


def test_effects_are_those_of_the_test_of_means_and_means_are_counts(other_types) -> None:
    _, model = other_types
    table = model.get_group_effects(groupby="cell_type", strata=1, n_samples=1)
    tested = model.differential_expression(mode="means", strata="cell_type", by_stratum=True)
    one = table[table["group"] == "type 2"]
    other = tested[tested["stratum"] == "type 2"].loc[one.index]
    np.testing.assert_allclose(one["lfc"], other["lfc"], rtol=1e-6)
    # Student's interval is as good as normal with so many cells.
    np.testing.assert_allclose(one["upper"] - one["lfc"], other["upper"] - other["lfc"], rtol=0.05)
    np.testing.assert_allclose(one["treated_mean"], other["mean1"])
    np.testing.assert_allclose(one["background_mean"], other["mean2"])
    strata = model.get_group_effects(strata="cell_type", by_stratum=True, n_samples=1)
    measured = [name for name in NUMBERS if name != "model_lfc"]  # which is of other draws
    pd.testing.assert_frame_equal(strata[measured], table[measured])
    everywhere = model.get_group_effects(strata="cell_type", n_samples=1)
    overall = model.differential_expression(mode="means", strata="cell_type")
    np.testing.assert_allclose(everywhere["lfc"], overall.loc[everywhere.index, "lfc"])
    assert set(everywhere["group"]) == {"all cells"}
    assert everywhere["n_strata"].iloc[0] == 4


def test_a_few_cells_scattered_over_clusters_are_compared_as_a_whole(other_types) -> None:
    adata, model = other_types
    cells = adata.copy()
    treated = (cells.obs["condition"] == "treated").to_numpy()
    rare = np.concatenate([np.flatnonzero(treated)[:12], np.flatnonzero(~treated)[:12]])
    assert cells.obs["cell_type"].iloc[rare].nunique() > 1
    cells.obs["kind"] = np.where(np.isin(np.arange(cells.n_obs), rare), "rare", "common")
    wanted: dict[str, Any] = {"groupby": "kind", "n_samples": 1, "fewest_cells": 12, "seed": 0}
    table = model.get_group_effects(cells, **wanted).query("group == 'rare'")
    whole = model.get_group_effects(cells, strata=1, **wanted).query("group == 'rare'")
    assert (table["n_cells"] == 12).all()
    pd.testing.assert_frame_equal(table[NUMBERS], whole[NUMBERS])
    # Strata that the user names are not given up.
    named = model.get_group_effects(cells, strata="cell_type", **wanted).query("group == 'rare'")
    assert set(named["not_estimated"]) == {"no stratum with 12 treated and background cells"}


def test_what_the_model_says_is_its_mean_expression_with_and_without_s(other_types) -> None:
    adata, model = other_types
    genes = list(adata.var_names[:7])
    table = model.get_group_effects(
        groupby="cell_type", strata=1, gene_list=genes, n_samples=3, seed=5
    )
    treated = np.flatnonzero(adata.obs["condition"] == "treated")
    decoded = model.get_normalized_expression(
        indices=treated, gene_list=genes, n_samples=3, quantity="mean", seed=5
    )
    kind = adata.obs["cell_type"].iloc[treated]
    with_s, without_s = (decoded[k].groupby(kind).mean() for k in ("salient", "background"))
    expected = np.log2(with_s / without_s).loc["type 3"]
    found = table.loc[table["group"] == "type 3", "model_lfc"]
    np.testing.assert_allclose(found, expected.loc[found.index], atol=1e-5)
    assert list(found.index) == genes


@pytest.mark.parametrize(("paired", "n_donors"), [(True, 8), (True, 2), (False, 8)])
def test_all_donors_are_the_mean_of_donors_with_the_interval_of_a_t_test(paired, n_donors) -> None:
    adata = of_donors(n_donors, paired=paired, seed=0)
    model = model_of(adata, size_factor_key="factor", sample_key="donor")
    table = model.get_group_effects(strata=1, n_samples=1, interval=0.9)
    every = table[table["sample"] == "all donors"]
    each = table[table["sample"] != "all donors"].pivot(columns="sample", values="lfc")
    each = each.loc[every.index]
    rate = adata.to_df().groupby(adata.obs["donor"]).mean()
    treated = adata.obs.groupby("donor")["condition"].agg(lambda c: set(c) == {"treated"})
    if paired:
        assert each.shape[1] == n_donors
        test = ttest_1samp(each.to_numpy(), 0.0, axis=1)
        np.testing.assert_allclose(every["lfc"], each.mean(axis=1))
        assert set(table["compared_with"]) == {"its own background cells"}
    else:
        assert list(each) == ["d1", "d3", "d5", "d7"]
        test = ttest_ind(np.log2(rate[treated]), np.log2(rate[~treated]), equal_var=False)
        assert set(table["compared_with"]) == {"background cells of all samples"}
        difference = np.log2(rate[treated]).mean() - np.log2(rate[~treated]).mean()
        np.testing.assert_allclose(every["lfc"], difference.loc[every.index], atol=0.01)
    ends = test.confidence_interval(0.9)
    np.testing.assert_allclose(every["lower"], ends.low, atol=0.02)
    np.testing.assert_allclose(every["upper"], ends.high, atol=0.02)
    assert set(every["n_samples"]) == {n_donors if paired else 4}
    assert every["n_cells"].iloc[0] == (adata.obs["condition"] == "treated").sum()
    assert every["n_background_cells"].iloc[0] == (adata.obs["condition"] == "control").sum()


@pytest.mark.parametrize("paired", [True, False])
def test_where_only_donors_differ_cells_find_effects_and_donors_do_not(paired) -> None:
    by_cells, by_donors = [], []
    for seed in range(3):
        adata = of_donors(8, paired=paired, seed=seed)
        model = model_of(adata, size_factor_key="factor", sample_key="donor")
        table = model.get_group_effects(sample_key="donor", strata=1, n_samples=1)
        excluded = (table["lower"] > 0) | (table["upper"] < 0)
        over_all = table["sample"] == "all donors"
        by_donors.append(excluded[over_all].mean())
        by_cells.append(excluded[~over_all].mean())
    assert np.mean(by_donors) < 0.08
    assert np.mean(by_cells) > 0.25


def test_samples_on_one_side_are_compared_with_all_and_the_table_says_so() -> None:
    adata = of_donors(3, paired=True, seed=0)
    control = (adata.obs["condition"] == "control").to_numpy()
    only_treated = (adata.obs["donor"] == "d2").to_numpy() & control
    only_controls = (adata.obs["donor"] == "d1").to_numpy() & ~control
    adata = adata[~only_treated & ~only_controls].copy()
    model = model_of(adata, sample_key="donor")
    table = model.get_group_effects(strata=1, n_samples=1)
    against = table.groupby("sample")["compared_with"].first()
    assert against.to_dict() == {
        "d0": "its own background cells",
        "d2": "background cells of all samples",
        "all donors": "background cells of all samples",
    }
    d2 = table[table["sample"] == "d2"]
    alone = adata[(adata.obs["donor"] == "d2") | (adata.obs["condition"] == "control")].copy()
    del alone.obs["donor"]
    expected = model_of(alone).differential_expression(mode="means", strata=1).loc[d2.index]
    np.testing.assert_allclose(d2["lfc"], expected["lfc"], rtol=1e-6)
    assert table["lfc"].notna().all()


def test_missing_numbers_have_a_reason() -> None:
    adata = small_adata()
    x = adata.X.toarray()
    x[:, 0], x[:, 1] = 0.0, 0.0
    x[0, 1] = 3.0
    adata.X = x
    adata.obs["kind"] = np.where(np.arange(26) < 5, "only controls", "both")
    adata.obs.loc[adata.obs_names[-1], "kind"] = np.nan
    adata.obs["cage of"] = np.where(np.arange(26) < 20, "m1", "m2")
    table = make(adata).get_group_effects(
        groupby="kind", sample_key="cage of", strata=1, fewest_cells=3
    )
    assert explained(table)
    assert set(table["group"]) == {"both", "only controls"}
    m1 = table[(table["sample"] == "m1") & (table["group"] == "both")]
    assert m1.loc["gene0", "not_estimated"] == "no counts"
    assert m1.loc["gene1", "not_estimated"] == "no counts"  # its counts are in the other group
    assert m1.loc["gene2", "not_estimated"] == ""
    nowhere = table[table["group"] == "only controls"]
    assert set(nowhere["not_estimated"]) == {"no treated cells"}
    every = table[(table["sample"] == "all donors") & (table["group"] == "both")]
    assert every.loc["gene2", "not_estimated"] == "one sample with background cells: no interval"
    assert np.isfinite(every.loc["gene2", "lfc"])
    strict = make(adata).get_group_effects(strata=1, fewest_cells=9)
    assert set(strict["not_estimated"]) == {"no stratum with 9 treated and background cells"}
    assert set(strict["n_cells"]) == {0}


def test_treatments_batches_query_data_and_selections() -> None:
    adata = small_adata()
    model = make(adata, "three")
    table = model.get_group_effects(strata=1, fewest_cells=2, seed=0)
    assert list(table["treatment"].unique()) == ["drug1", "drug2"]
    assert set(table["n_strata"]) == {2}  # one per batch
    assert "sample" not in table
    drug1 = table[table["treatment"] == "drug1"]
    chosen = model.get_group_effects(strata=1, fewest_cells=2, treatment="drug1", seed=0)
    pd.testing.assert_frame_equal(chosen, drug1)
    part = model.get_group_effects(strata=1, fewest_cells=2, indices=np.arange(19), seed=0)
    np.testing.assert_allclose(part["lfc"], drug1["lfc"])
    reordered = adata[::-1, ::-1].copy()
    again = model.get_group_effects(reordered, strata=1, fewest_cells=2, treatment="drug1")
    np.testing.assert_allclose(again["lfc"], drug1["lfc"])
    model.train(max_epochs=1, enable_progress_bar=False)
    encoded, refined = (
        model.get_group_effects(strata=1, fewest_cells=2, refine=refine, seed=0)
        for refine in (False, 2)
    )
    np.testing.assert_allclose(refined["lfc"], encoded["lfc"])
    assert not np.allclose(refined["model_lfc"], encoded["model_lfc"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groupby": "kind"}, KeyError, "kind"),
        ({"groupby": ["three"]}, TypeError, "groupby must be the name of a column"),
        ({"sample_key": "mouse"}, KeyError, "mouse"),
        ({"groupby": "three", "by_stratum": True}, ValueError, "give either it or groupby="),
        ({"treatment": "drug9"}, ValueError, "'drug9' is not a condition"),
        ({"treatment": "control"}, ValueError, "is the background"),
        ({"treatment": "drug2", "indices": np.arange(19)}, ValueError, "was given 'drug2'"),
        ({"indices": np.arange(12)}, ValueError, "None of these cells is a treated cell"),
        ({"indices": np.arange(12, 26)}, ValueError, "None of these cells is a background cell"),
        ({"strata": 0}, ValueError, "strata must be at least 1"),
        ({"gene_list": ["gene99"]}, ValueError, "gene99"),
    ],
)
def test_wrong_arguments(arguments, error, message) -> None:
    model = make(small_adata(), "three")
    with pytest.raises(error, match=message):
        model.get_group_effects(**arguments)


def test_data_that_are_not_counts_are_refused() -> None:
    adata = small_adata()
    adata.layers["logs"] = np.log1p(adata.X.toarray())
    with pytest.warns(UserWarning, match="does not hold raw counts"):
        ContrastiveVI.setup_anndata(
            adata, layer="logs", condition_key="condition", background="control"
        )
    model = ContrastiveVI(adata, likelihood=Gaussian())
    with pytest.raises(ValueError, match="compares counts with a library size, which Gaussian"):
        model.get_group_effects()


def test_what_the_model_says_of_many_cells_is_known_from_some_of_each_stratum(
    other_types, monkeypatch
) -> None:
    adata, model = other_types
    module = "pyro_contrastive.analysis.means.decoded_sums"
    given = {"groupby": "cell_type", "sample_key": None, "n_samples": 20, "seed": 0}
    whole = model.get_group_effects(**given)["model_lfc"]
    decoded: list[int] = []
    plain = decoded_sums.decoded_sums

    def counted(query: Any, codes: Any, n_codes: int) -> Any:
        decoded.append(len(codes))
        assert np.bincount(codes).max() <= 20
        return plain(query, codes, n_codes)

    monkeypatch.setattr(f"{module}.MOST_DECODED", 20)
    monkeypatch.setattr(f"{module}.decoded_sums", counted)
    some = model.get_group_effects(**given)["model_lfc"]
    assert 0 < sum(decoded) < 0.8 * (adata.obs["condition"] == "treated").sum()
    assert np.corrcoef(some, whole)[0, 1] > 0.95
    assert abs(some.mean() - whole.mean()) < 0.1 * whole.std()
