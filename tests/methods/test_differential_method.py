"""Differential expression by the model's method: cells by column and by query, arguments."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_model import GENES, make


def test_differential_expression_by_column_and_by_query(adata) -> None:
    model = make(adata)
    obs = adata.obs.copy()
    quick = {"silent": True, "n_samples_overall": 200, "seed": 0}
    table = model.differential_expression(groupby="condition", group1="treated", **quick)
    assert set(table.index) == set(model.genes)
    assert {"proba_de", "lfc_mean", "is_de_fdr_0.05", "raw_mean1", "comparison"} <= set(table)
    query = model.differential_expression(
        idx1="condition == 'treated'", idx2=np.arange(12), **quick
    )
    for column in ("proba_de", "lfc_mean", "scale1", "raw_mean2"):
        assert np.array_equal(query[column], table[column]), column
    pd.testing.assert_frame_equal(obs, adata.obs)
    turned = model.differential_expression(adata[:, ::-1].copy(), groupby="condition", **quick)
    turned = turned[turned["group1"] == "treated"].loc[table.index]
    assert turned["raw_mean1"].tolist() == table["raw_mean1"].tolist()
    with pytest.raises(TypeError, match="nonsense"):
        model.differential_expression(groupby="condition", nonsense=1)


def test_differential_expression_knows_the_populations_train_was_given(adata) -> None:
    model = make(adata, condition_key=None)
    quick = {"silent": True, "n_samples_overall": 200, "seed": 0, "groupby": "three"}
    model.train(
        np.arange(12), np.arange(12, 24), max_epochs=1, enable_progress_bar=False, train_size=0.8
    )
    with pytest.raises(ValueError, match=r"2 of these cells were neither.*target_idx"):
        model.differential_expression(**quick)
    named = model.differential_expression(target_idx=np.arange(12, 26), **quick)
    known = model.differential_expression(adata[:24].copy(), **quick)
    assert len(named) == len(known) == 3 * GENES


def test_arguments_that_differential_expression_does_not_take_are_named(adata) -> None:
    with pytest.raises(TypeError, match=r"takes no weights, n_draws. .*: all_stats, change_fn"):
        make(adata).differential_expression(groupby="condition", weights="uniform", n_draws=3)


@pytest.mark.parametrize("mode", ["change", "vanilla"])
def test_genes_with_few_counts_are_marked_never_tagged_and_come_last(adata, mode) -> None:
    x = adata.X.toarray()
    x[:, :3] = 0.0
    x[12:21, 1], x[12:22, 2] = 1.0, 1.0  # 0, 9 and 10 counts
    adata.X = x
    model = make(adata)
    given = {"groupby": "condition", "group1": "treated", "mode": mode, "seed": 0}
    options = {} if mode == "vanilla" else {"fdr_target": 1.0}  # a target of 1 tags all
    table = model.differential_expression(**given, **options, silent=True)
    assert set(table.index[-2:]) == {"gene0", "gene1"}
    assert table.loc["gene0", "not_tested"] == "no counts"
    assert table.loc["gene1", "not_tested"] == "fewer than 10 counts"
    assert table.loc["gene2", "not_tested"] == ""
    every = model.differential_expression(**given, **options, fewest_counts=0, silent=True)
    assert "not_tested" not in every
    key = "proba_de" if mode == "change" else "bayes_factor"
    assert every[key].is_monotonic_decreasing
    np.testing.assert_array_equal(every[key], table.loc[every.index, key])
    if mode == "change":
        tagged = table["is_de_fdr_1.0"]
        assert tagged.index[~tagged].tolist() == table.index[-2:].tolist()
        assert every["is_de_fdr_1.0"].all()
    with pytest.raises(ValueError, match="fewest_counts must be at least 0, not -1"):
        model.differential_expression(**given, fewest_counts=-1)


def test_rare_genes_are_left_out_of_the_expected_false_discovery_rate(adata) -> None:
    x = adata.X.toarray()
    x[:, 0] = 0.0
    adata.X = x
    model = make(adata)
    given = {"groupby": "condition", "group1": "treated", "seed": 0, "silent": True}
    table = model.differential_expression(**given, fdr_target=0.6)
    p = table.loc[table["not_tested"] == "", "proba_de"].to_numpy()
    expected = np.cumsum(1 - p) / np.arange(1, len(p) + 1) <= 0.6
    assert table["is_de_fdr_0.6"].sum() == expected.sum()
