"""Differential expression with donors as the unit, as users ask for it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_model import make, small_adata

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.analysis.means.sex_genes import is_sex_linked
from pyro_contrastive.testing import TreatmentSettings, simulate_treatment

KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}
BY_TYPE: dict[str, Any] = {"mode": "means", "strata": "cell_type"}


def model_of(adata, **keys: Any) -> ContrastiveVI:
    ContrastiveVI.setup_anndata(adata, **(KEYS | {"sample_key": "donor"} | keys))
    torch.manual_seed(0)
    return ContrastiveVI(adata, n_hidden=8, n_background_latent=3, n_salient_latent=2)


def data_of(**changes: Any):
    sizes: dict[str, Any] = {"n_background": 400, "n_target": 400, "n_genes": 200, "n_donors": 4}
    return simulate_treatment(TreatmentSettings(**(sizes | changes)), seed=0)


@pytest.fixture(scope="module")
def nested():
    adata = data_of(type_shift=1.0)
    return adata, model_of(adata)


@pytest.fixture(scope="module")
def paired():
    adata = data_of(paired=True)
    return adata, model_of(adata)


def rates(adata, table) -> tuple[float, float]:
    table = table.loc[adata.var_names]
    found, lfc = table["is_de_fdr_0.05"].to_numpy(), adata.var["lfc"].to_numpy()
    return (found & (lfc == 0)).sum() / max(found.sum(), 1), found[np.abs(lfc) >= 0.5].mean()


def test_donors_are_the_unit_where_they_are_set_up(nested, paired) -> None:
    for adata, model in (nested, paired):
        by_donor = model.differential_expression(**BY_TYPE)
        cells = model.differential_expression(sample_key=False, **BY_TYPE)
        assert {"n_donors1", "n_donors2"} == set(by_donor) - set(cells)
        assert (by_donor["n_donors1"] == 4).all()
        assert (by_donor["n_donors2"] == 4).all()
        assert by_donor["n_cells1"].iloc[0] == 400
        false, power = rates(adata, by_donor)
        assert false < 0.1
        assert power > 0.5
        assert rates(adata, cells)[0] > 0.25  # donors are taken for the treatment
        lfc = adata.var["lfc"].loc[by_donor.index]
        inside = (by_donor["lower"] <= lfc) & (lfc <= by_donor["upper"])
        assert inside.mean() > 0.9
        assert (by_donor["lfc_se"] > cells["lfc_se"].loc[by_donor.index]).mean() > 0.9


def test_pairs_say_more_than_as_many_donors_apart(paired) -> None:
    adata, model = paired
    within = model.differential_expression(**BY_TYPE)
    apart = adata.obs["donor"].astype(str) + adata.obs["condition"].astype(str)
    unpaired = adata.copy()
    unpaired.obs["donor"] = apart
    between = model_of(unpaired).differential_expression(**BY_TYPE)
    assert within["is_de_fdr_0.05"].sum() > 1.3 * between["is_de_fdr_0.05"].sum()


def test_the_column_may_be_given_in_the_call(nested) -> None:
    adata, model = nested
    other = adata.copy()
    other.obs = other.obs.rename(columns={"donor": "animals"})
    ContrastiveVI.setup_anndata(other, **KEYS, sample_key="animals")
    table = model.differential_expression(other, sample_key="animals", **BY_TYPE)
    pd.testing.assert_frame_equal(table, model.differential_expression(**BY_TYPE))
    with pytest.raises(KeyError, match="'donor' is not a column"):
        model.differential_expression(other, **BY_TYPE)


def test_every_type_by_itself(nested) -> None:
    adata, model = nested
    every = model.differential_expression(by_stratum=True, **BY_TYPE)
    one = every[every["stratum"] == "type 1"].drop(columns="stratum")
    only = adata[adata.obs["cell_type"] == "type 1"].copy()
    alone = model.differential_expression(only, mode="means", strata=1).loc[one.index]
    np.testing.assert_allclose(one["p_value"], alone["p_value"], rtol=1e-6)


def test_a_threshold_asks_for_larger_changes(paired) -> None:
    _, model = paired
    any_change = model.differential_expression(**BY_TYPE)
    large = model.differential_expression(lfc_threshold=1.0, **BY_TYPE).loc[any_change.index]
    assert 0 < large["is_de_fdr_0.05"].sum() < any_change["is_de_fdr_0.05"].sum()
    assert (large["p_value"] >= any_change["p_value"] - 1e-12).all()
    assert (large.loc[large["lfc"].abs() < 1, "p_value"] == 1).all()


def test_a_type_of_a_single_donor_says_why_it_is_not_tested(nested) -> None:
    adata, model = nested
    of_side = (adata.obs["condition"] == "treated").to_numpy()
    others = of_side & (adata.obs["cell_type"] == "type 2") & (adata.obs["donor"] != "donor 5")
    table = model.differential_expression(adata[~others].copy(), by_stratum=True, **BY_TYPE)
    untested = table["stratum"] == "type 2"
    assert (table.loc[untested, "not_tested"] == "fewer than 2 donors of a group").all()
    assert (table.loc[untested, ["n_donors1", "n_donors2"]] == [1, 4]).all(axis=None)
    assert table.loc[untested, ["lfc", "p_value", "p_adj"]].isna().all(axis=None)
    tested = table["not_tested"] == ""
    assert tested[~untested].mean() > 0.9
    assert table.loc[tested, ["lfc", "p_value", "p_adj", "upper"]].notna().all(axis=None)


def test_too_few_donors_are_refused(nested, paired) -> None:
    adata, model = nested
    some = adata[adata.obs["donor"].isin([f"donor {i}" for i in (1, 2, 3, 5)])].copy()
    message = r"too few donors \(sample_key='donor'\).*: 1 in group 1 \(donor 5\) and 3 in group 2"
    for settings in ({}, {"by_stratum": True}):
        with pytest.raises(ValueError, match=message):
            model.differential_expression(some, **BY_TYPE, **settings)
    assert "n_donors1" not in model.differential_expression(some, sample_key=False, **BY_TYPE)
    with pytest.raises(ValueError, match=r"not replicates: .* sample_key=False"):
        model.differential_expression(sample_key="condition", **BY_TYPE)
    adata, model = paired
    one = adata[adata.obs["donor"] == "donor 1"].copy()
    with pytest.raises(ValueError, match=r"1 in group 1 .* and 1 in group 2"):
        model.differential_expression(one, **BY_TYPE)


def test_a_donor_on_one_side_only_is_used(paired) -> None:
    adata, model = paired
    lost = (adata.obs["donor"] == "donor 2") & (adata.obs["condition"] == "control")
    table = model.differential_expression(adata[~lost].copy(), **BY_TYPE)
    assert (table[["n_donors1", "n_donors2"]] == [4, 3]).all(axis=None)
    assert rates(adata, table)[0] < 0.1
    assert table["is_de_fdr_0.05"].sum() > 10


def test_donors_of_few_cells_are_left_out_and_named(nested, caplog) -> None:
    adata, model = nested
    cells = np.flatnonzero(adata.obs["donor"] == "donor 6")[3:]
    fewer = adata[np.setdiff1d(np.arange(adata.n_obs), cells)].copy()
    with caplog.at_level(logging.WARNING, "pyro_contrastive"):
        table = model.differential_expression(fewer, **BY_TYPE)
    assert (table["n_donors1"] == 3).all()
    assert "1 donor has fewer than 5 cells" in caplog.text
    assert "donor 6" in caplog.text


def test_batches_of_one_donor_are_no_strata(nested, paired) -> None:
    for adata, model in (nested, paired):
        batched = adata.copy()
        if adata is nested[0]:
            with pytest.warns(UserWarning, match="occurs in both"):
                by_batch = model_of(batched, batch_key="donor")
        else:
            by_batch = model_of(batched, batch_key="donor")
        table = by_batch.differential_expression(**BY_TYPE)
        pd.testing.assert_frame_equal(table, model.differential_expression(**BY_TYPE))


def test_batches_of_several_donors_are_compared_within(nested) -> None:
    adata, _ = nested
    number = adata.obs["donor"].str.split().str[1].astype(int)
    adata = adata.copy()
    adata.obs["lane"] = np.where(number.isin([1, 2, 5, 6]), "a", "b")
    x = adata.X.toarray()
    in_lane = (adata.obs["lane"] == "a").to_numpy()
    x[:, :20] *= np.where(in_lane, 3, 1)[:, None]  # the lane changes these, the treatment does not
    adata.X = x
    within = model_of(adata, batch_key="lane").differential_expression(**BY_TYPE)
    across = model_of(adata).differential_expression(**BY_TYPE)
    some = adata.var_names[:20]
    assert (within.loc[some, "lfc_se"] < 0.9 * across.loc[some, "lfc_se"]).mean() > 0.9
    adata.obs["lane"] = np.where(number < 5, "a", "b")
    with pytest.warns(UserWarning, match="occurs in both"):
        confounded = model_of(adata, batch_key="lane")
    with pytest.raises(ValueError, match="No stratum has at least 5 cells of both groups"):
        confounded.differential_expression(**BY_TYPE)


@pytest.mark.parametrize(
    ("gene", "is_linked"),
    [
        *(("XIST", True), ("Xist", True), ("XIST-1", True), ("xist.2", True), ("Ddx3y-1", True)),
        *(("ISG15", False), ("XISTX", False), ("XIST-2B", False), ("ZFYVE1", False), (7, False)),
    ],
)
def test_genes_of_the_sexes_are_known_by_their_symbols(gene, is_linked) -> None:
    assert is_sex_linked([gene, "ACTB"]).tolist() == [is_linked, False]


def test_genes_that_cannot_be_tested_say_why_and_sex_is_pointed_to() -> None:
    adata = data_of(share_affected=0.0)
    x = adata.X.toarray()
    treated = (adata.obs["condition"] == "treated").to_numpy()
    x[:, 0], x[:, 1], x[:5, 1] = 0, 0, 1
    rng = np.random.default_rng(0)
    x[:, 2], x[:, 3] = rng.poisson(5.0 * treated), rng.poisson(5.0 * ~treated)
    adata.X = x
    adata.var_names = ["none", "few", "XIST", "Ddx3y", *adata.var_names[4:]]
    for sample_key in ("donor", False):
        table = model_of(adata).differential_expression(sample_key=sample_key, **BY_TYPE)
        assert table.loc[["none", "few"], "not_tested"].tolist() == [
            "no counts",
            "fewer than 10 counts",
        ]
        assert table.loc[["none", "few"], ["lfc", "lower", "p_adj"]].isna().all(axis=None)
        assert not table.loc[["none", "few"], "is_de_fdr_0.05"].any()
        assert (table["note"] != "").sum() == 2
        assert set(table["note"][["XIST", "Ddx3y"]]) == {"sex-linked: donors of different sex?"}
        tested = table["not_tested"] == ""
        assert table.loc[tested, ["lfc", "lfc_se", "p_value"]].notna().all(axis=None)


@pytest.mark.parametrize("donor_test", ["moderated_t", "pydeseq2"])
def test_data_without_a_gene_to_test_give_a_table_of_reasons(nested, donor_test) -> None:
    _, model = nested
    table = model.differential_expression(fewest_counts=10**9, donor_test=donor_test, **BY_TYPE)
    assert (table["not_tested"] == "fewer than 1000000000 counts").all()
    assert table["p_value"].isna().all()
    assert not table["is_de_fdr_0.05"].any()


def test_pydeseq2_gives_a_reason_wherever_it_gives_no_number(nested) -> None:
    pytest.importorskip("pydeseq2")
    adata, model = nested
    x = adata.X.toarray()
    x[:, 0] = 0
    x[(adata.obs["donor"] == "donor 7").to_numpy(), 1] = 400  # an outlier
    other = adata.copy()
    other.X = x
    table = model.differential_expression(other, donor_test="pydeseq2", **BY_TYPE)
    names = other.var_names
    assert table.loc[names[0], "not_tested"] == "no counts"
    assert table.loc[names[1], "not_tested"].startswith("PyDESeq2: one donor is an outlier")
    tested = table["not_tested"] == ""
    assert tested.sum() > 150
    assert table.loc[tested, ["lfc", "lfc_se", "p_value", "p_adj"]].notna().all(axis=None)
    assert table.loc[~tested, ["lfc", "p_value", "p_adj"]].isna().all(axis=None)
    assert rates(other, table)[0] < 0.1


def test_pydeseq2_is_asked_for_where_it_is_missing(nested, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydeseq2.dds", None)
    with pytest.raises(ImportError, match=r'pip install "pyro-contrastive\[donors\]"'):
        nested[1].differential_expression(donor_test="pydeseq2", **BY_TYPE)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sample_key": True}, TypeError, "must be the name of a column"),
        ({"sample_key": 3}, TypeError, "sample_key must be the name of a column"),
        ({"sample_key": "who"}, KeyError, "'who' is not a column"),
        ({"donor_test": "deseq"}, ValueError, "donor_test must be one of"),
        ({"donor_test": "pydeseq2"}, ValueError, "compares donors: say which, sample_key="),
        ({"mode": "change", "sample_key": "condition"}, ValueError, 'use mode="means"'),
    ],
)
def test_wrong_arguments(arguments, error, message) -> None:
    model = make(small_adata())
    with pytest.raises(error, match=message):
        model.differential_expression(**({"mode": "means", "groupby": "condition"} | arguments))


def test_missing_donors_are_an_error(nested) -> None:
    adata, model = nested
    other = adata.copy()
    other.obs["donor"] = other.obs["donor"].astype(object)
    other.obs.iloc[:3, list(other.obs).index("donor")] = None
    with pytest.raises(ValueError, match=r"adata.obs\['donor'\] is missing \(NaN\) in 3 cells"):
        model.differential_expression(other, **BY_TYPE)
