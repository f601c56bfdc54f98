"""Differential expression: which settings, cells, batches and pairs of draws are compared."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyro_contrastive.analysis import differential
from pyro_contrastive.analysis.differential import draw_scales, pair_draws
from pyro_contrastive.analysis.differential_groups import (
    GroupPair,
    group_pairs,
    select_cells,
    with_targets,
)
from pyro_contrastive.analysis.differential_settings import DifferentialSettings, batches_to_decode
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.data.cell_data import CellData

WRONG_SETTINGS = {
    "mode must be 'change', 'vanilla' or 'means', not 'chance'": {"mode": "chance"},
    "test_mode must be": {"test_mode": "four"},
    "delta must be at least 0": {"delta": -0.1},
    "fdr_target must be from 0 to 1": {"fdr_target": 5},
    "n_samples must be": {"n_samples": 0},
    "n_samples_overall must be": {"n_samples_overall": 0},
    "m_permutation must be": {"use_permutation": True, "m_permutation": 0},
    "pseudocounts must be positive": {"pseudocounts": 0.0},
    "cred_interval_lvls must be between 0 and 1": {"cred_interval_lvls": [95]},
    "change_fn must be 'log-fold' or a function": {"change_fn": "difference"},
    "m1_domain_fn must be a function": {"m1_domain_fn": 0.3},
    "delta=1.0 has no effect with mode=": {"mode": "vanilla", "delta": 1.0},
    "delta=None has no effect with mode=": {"mode": "vanilla", "delta": None},
    "fdr_target=0.1 has no effect": {"mode": "vanilla", "fdr_target": 0.1},
    "test_mode='two' has no effect": {"mode": "vanilla", "test_mode": "two"},
    "cred_interval_lvls=.* has no effect": {
        "mode": "vanilla",
        "cred_interval_lvls": np.array([0.9]),
    },
    "m_permutation=20 has no effect without use_permutation": {"m_permutation": 20},
    "threshold_counts=1 has no effect when": {"pseudocounts": 0.1, "threshold_counts": 1},
    "delta=1 has no effect when m1_domain_fn": {"delta": 1, "m1_domain_fn": lambda c: (c > 0,) * 2},
}


@pytest.mark.parametrize(("message", "settings"), WRONG_SETTINGS.items())
def test_settings_that_cannot_be_honoured_are_refused(message, settings):
    with pytest.raises(ValueError, match=message):
        DifferentialSettings(**settings)


OBS = pd.DataFrame(
    {
        "leiden": pd.Categorical([0, 0, 1, 1, 2, None], categories=[0, 1, 2, 3]),
        "n": [1, 2, 3, 4, 5, 6],
        "same": "x",
    },
    index=["c", "c", "d", "e", "f", "g"],  # names of cells may repeat
)


def as_lists(pairs: list[GroupPair]) -> list[tuple[object, object, list[int], list[int]]]:
    return [(p.name1, p.name2, p.cells1.tolist(), p.cells2.tolist()) for p in pairs]


def test_groups_of_a_column():
    everything = as_lists(group_pairs(OBS, groupby="leiden"))
    assert everything == [  # unused groups and cells without a group take no part
        (0, "Rest", [0, 1], [2, 3, 4]),
        (1, "Rest", [2, 3], [0, 1, 4]),
        (2, "Rest", [4], [0, 1, 2, 3]),
    ]
    assert as_lists(group_pairs(OBS, groupby="leiden", group1=[2, "0", 2])) == [
        everything[2],
        everything[0],
    ]
    assert as_lists(group_pairs(OBS, groupby="leiden", group1="1", group2=2)) == [
        (1, 2, [2, 3], [4])
    ]
    assert as_lists(group_pairs(OBS, groupby="leiden", group2=0)) == [
        (1, 0, [2, 3], [0, 1]),
        (2, 0, [4], [0, 1]),
    ]


@pytest.mark.parametrize(
    "selection", [[3, 2, 3], [-3, 2], np.array([0, 0, 1, 1, 0, 0], bool), "n == 3 or n == 4"]
)
def test_selections(selection):
    assert select_cells(selection, OBS, "idx1").tolist() == [2, 3]
    assert as_lists(group_pairs(OBS, idx1=selection)) == [(None, None, [2, 3], [0, 1, 4, 5])]
    assert as_lists(group_pairs(OBS, idx1=[0], idx2=selection)) == [(None, None, [0], [2, 3])]


def test_query_of_repeated_names_takes_rows_not_names():
    assert select_cells("n == 1", OBS, "idx1").tolist() == [0]


WRONG_GROUPS = {
    "Which cells are to be compared": {},
    "already chosen by idx1; groupby and group2 cannot": {"idx1": [0], "groupby": "n", "group2": 1},
    "give idx1 too": {"idx2": [0]},
    r"Give groupby= \(a column": {"group1": "a"},
    r"idx1 selects no cells\.": {"idx1": "n > 9"},
    r"idx2 selects no cells \(idx1 holds all": {"idx1": "n > 0"},
    r"idx2 selects no cells\.": {"idx1": [0], "idx2": []},
    "2 cells are in both idx1 and idx2, e.g. cell 1": {"idx1": [0, 1, 2], "idx2": "n in [2, 3, 4]"},
    r"idx1='m > 2' does not work .* columns are \['leiden', 'n', 'same'\]": {"idx1": "m > 2"},
    "idx1='n >' does not work": {"idx1": "n >"},
    "idx1 holds 6 to 6; there are 6 cells": {"idx1": [6]},
    r"group1=7 is not a group .* groups are \[0, 1, 2\]": {"groupby": "leiden", "group1": [0, 7]},
    "group1=3 is not a group with cells": {"groupby": "leiden", "group1": 3},
    "group2='x' is not a group": {"groupby": "leiden", "group2": "x"},
    "group1 is empty": {"groupby": "leiden", "group1": []},
    "both hold 1": {"groupby": "leiden", "group1": [0, 1], "group2": "1"},
    r"All cells have same = \['x'\]": {"groupby": "same"},
}


@pytest.mark.parametrize(("message", "kwargs"), WRONG_GROUPS.items())
def test_comparisons_that_make_no_sense_are_refused(message, kwargs):
    with pytest.raises(ValueError, match=message):
        group_pairs(OBS, **kwargs)


def test_unknown_column_lists_the_columns():
    with pytest.raises(KeyError, match=r"columns are \['leiden', 'n', 'same'\]"):
        group_pairs(OBS, groupby="louvain")


def test_targets():
    data = CellData(np.ones((6, 2), dtype=np.float32), condition=np.array([0, 0, 1, 2, 0, 0]))
    assert with_targets(data, OBS, None) is data
    assert with_targets(data, OBS, "n > 3").condition.tolist() == [0, 0, 0, 2, 1, 1]
    assert with_targets(data, OBS, []).condition.tolist() == [0] * 6
    unknown = CellData(data.counts)
    assert with_targets(unknown, OBS, OBS["n"] > 4).condition.tolist() == [0, 0, 0, 0, 1, 1]
    with pytest.raises(ValueError, match="Give target_idx="):
        with_targets(unknown, OBS, None)


def test_batches_to_decode():
    def codes(one: object = None, two: object = None) -> tuple[list[int], list[int]]:
        return batches_to_decode("pqr", batch_correction=True, batchid1=one, batchid2=two)

    assert batches_to_decode("pqr", batch_correction=False) == ([], [])
    assert codes() == ([0, 1, 2], [0, 1, 2])
    assert codes(["r", "p"], ("p", "r", "p")) == ([0, 2], [0, 2])
    assert codes("q", np.array(["r"])) == ([1], [2])
    assert batches_to_decode(["1", "2"], batch_correction=True, batchid1=[1], batchid2=2) == (
        [0],
        [1],
    )


@pytest.mark.parametrize(
    ("message", "categories", "kwargs"),
    [
        ("no effect without batch_correction", "pq", {"batchid2": "p", "batch_correction": False}),
        ("batch_correction=True needs batches", "", {}),
        (r"batchid1 holds unknown batches \['x'\]; the batches are \['p'", "pq", {"batchid1": "x"}),
        ("batchid2 is empty", "pq", {"batchid2": []}),
        (r"share \['p'\] but are not the same", "pqr", {"batchid1": "pq", "batchid2": ["p", "r"]}),
        (r"share \['p'\] but are not the same \(by default", "pqr", {"batchid1": "p"}),
    ],
)
def test_batches_that_make_no_sense_are_refused(message, categories, kwargs):
    kwargs = {k: list(v) if v == "pq" else v for k, v in kwargs.items()}
    with pytest.raises(ValueError, match=message):
        batches_to_decode(list(categories), **({"batch_correction": True} | kwargs))


def settings_of(**kwargs: object) -> DifferentialSettings:
    return DifferentialSettings(**({"n_samples_overall": 10} | kwargs))


@pytest.mark.parametrize("options", [{}, {"use_permutation": True, "m_permutation": 31}])
def test_draws_are_paired_within_a_batch(options):
    rng = np.random.default_rng(0)
    batch = np.repeat([0.0, 1.0, 2.0], [4, 3, 3])[:, None]  # as draw_scales splits 10 draws
    first, second = pair_draws(batch, batch, ([4, 5, 6], [4, 5, 6]), settings_of(**options), rng)
    np.testing.assert_array_equal(first, second)
    assert set(first.ravel()) == {0.0, 1.0, 2.0}
    assert len(first) == (31 if options else 10)


@pytest.mark.parametrize("options", [{}, {"use_permutation": True, "m_permutation": 400}])
def test_different_batches_are_all_paired(options):
    rng = np.random.default_rng(0)
    batch = np.repeat([0.0, 1.0], 100)[:, None]
    first, second = pair_draws(batch, batch, ([0, 1], [2, 3]), settings_of(**options), rng)
    table = pd.crosstab(first.ravel(), second.ravel()).to_numpy()
    assert (abs(table / len(first) - 0.25) < 0.1).all()


def test_permuted_pairs_are_random():
    rng = np.random.default_rng(0)
    draws = np.arange(10.0)[:, None]
    settings = settings_of(use_permutation=True, m_permutation=1000)
    first, second = pair_draws(draws, draws, ([], []), settings, rng)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1
    assert np.bincount(first.ravel().astype(int), minlength=10).min() > 60


def test_each_batch_gets_its_share_of_the_draws(monkeypatch):
    calls = []

    def record(query):
        calls.append((len(query), tuple(query.decoding.batches), query.decoding.n_samples))
        assert set(query.cells.tolist()) <= {3, 4}
        return [np.ones((len(query), 2))]

    monkeypatch.setattr(differential, "decode_cells", record)
    group = Query(None, None, np.array([3, 4]))
    rng = np.random.default_rng(0)
    settings = settings_of(n_samples=5)
    assert draw_scales(group, [2, 0, 1], settings, rng).shape == (10, 2)
    assert calls == [(4, (2,), 5), (3, (0,), 5), (3, (1,), 5)]
    draw_scales(group, [], settings, rng)
    assert calls[-1] == (10, (), 5)
    with pytest.raises(ValueError, match="n_samples_overall=2 is less than one draw for each of 3"):
        draw_scales(group, [0, 1, 2], settings_of(n_samples_overall=2), rng)
