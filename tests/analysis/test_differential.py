"""Differential expression: its arithmetic, and the table made from given draws."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyro_contrastive import NegativeBinomial
from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis import differential
from pyro_contrastive.analysis import differential_statistics as statistics
from pyro_contrastive.analysis.differential import differential_expression
from pyro_contrastive.analysis.differential_groups import GroupPair, group_pairs
from pyro_contrastive.analysis.differential_settings import DifferentialSettings
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.data.cell_data import CellData

BAYES = ["bayes_factor", "scale1", "scale2"]
CHANGE = ["proba_de", "proba_not_de", *BAYES, "pseudocounts", "delta"]
LFC = ["lfc_mean", "lfc_median", "lfc_std", "lfc_min", "lfc_max"]
COUNTS = [
    f"{name}{i}"
    for name in ("raw_mean", "non_zeros_proportion", "raw_normalized_mean")
    for i in (1, 2)
]
NAMES = ["comparison", "group1", "group2"]
# The draws are given, so that of the module only what its likelihood says is looked at.
ANY_MODULE = SimpleNamespace(model=SimpleNamespace(likelihood=NegativeBinomial()))


def test_log_odds():
    expected = [0.0, np.log(3), np.log(1e-8), -np.log(1e-8)]
    np.testing.assert_allclose(statistics.log_odds([0.5, 0.75, 0, 1]), expected, rtol=1e-7)


def test_log_fold_change():
    found = statistics.log_fold_change(np.array([[0.3, 0.1]]), np.array([[0.1, 0.1]]), 0.1)
    np.testing.assert_allclose(found, [[1.0, 0.0]])


def test_tags_up_to_the_expected_fdr():
    # Sorted, 1 - p is 0, .04, .11, .5: its running means are 0, .02, .05, .1625.
    p = [0.5, 1.0, 0.89, 0.96]
    assert statistics.tag_by_expected_fdr(p, 0.0501).tolist() == [False, True, True, True]
    assert statistics.tag_by_expected_fdr(p, 0.03).tolist() == [False, True, False, True]
    assert statistics.tag_by_expected_fdr(p, 1.0).all()
    # Numbers that binary fractions hold exactly: a running mean of 1/4 is not above 1/4.
    assert statistics.tag_by_expected_fdr([0.5, 1.0], 0.25).all()
    assert statistics.tag_by_expected_fdr([0.5, 1.0], 0.2499).tolist() == [False, True]
    assert not statistics.tag_by_expected_fdr([0.9, 0.8], 0.05).any()


def test_pseudocount_is_from_genes_without_counts():
    draws1 = np.array([[0.1, 0.2, 0.7], [0.3, 0.1, 0.6]])
    draws2 = np.array([[0.5, 0.4, 0.1], [0.6, 0.2, 0.2]])
    # Group 1: largest draws .3 and .2 of its two silent genes, quantile .29. Group 2: .2.
    means = [np.array([0.0, 0.009, 5.0]), np.array([3.0, 4.0, 0.0])]
    found = statistics.estimate_pseudocount((draws1, draws2), means, 0.01)
    assert found == pytest.approx(0.29 / 3)
    # At the threshold a gene is expressed.
    assert statistics.estimate_pseudocount((draws1, draws2), means, 0.0) == 1e-10
    means[1] = np.array([0.0, 4.0, 0.0])
    found = statistics.estimate_pseudocount((draws1, draws2), means, 0.01)
    assert found == pytest.approx((0.2 + 0.9 * 0.4) / 3)


def test_probability_of_change_takes_one_direction_or_both():
    change = np.array([[0.25, -0.25], [-0.26, 0.0], [1.0, -3.0], [0.0, 0.3]])
    up, down = statistics.beyond(change, 0.25)
    found = {m: statistics.probability_of_change(up, down, m) for m in ("two", "three")}
    np.testing.assert_allclose(found["three"], [0.5, 0.25])
    np.testing.assert_allclose(found["two"], [0.75, 0.5])


def test_delta_is_from_the_outer_normals():
    rng = np.random.default_rng(0)
    parts = [rng.normal(m, 0.02, n) for m, n in ((-2, 40), (0, 300), (1, 60))]
    found = statistics.estimate_delta(np.concatenate(parts), rng)
    assert found == pytest.approx(0.6 * 1.5, abs=0.02)
    assert statistics.estimate_delta(rng.normal(0, 0.01, 100), rng) == 0.1
    with pytest.raises(ValueError, match="fits 3 normals to the genes, but there are 2"):
        statistics.estimate_delta(np.zeros(2), rng)


def test_description_of_draws():
    samples = np.array([[0.0], [5.0], [1.0], [2.0], [1.5]])
    found = statistics.describe(samples, [0.4])
    expected = {
        "mean": 1.9,
        "median": 1.5,
        "std": np.sqrt(14.2 / 5),
        "min": 0.0,
        "max": 5.0,
        "confidence_interval_0.4_min": 1.0,  # of 0, 1, 1.5, 2, 5 the shortest step of 2: 1 to 2
        "confidence_interval_0.4_max": 2.0,
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], [value])
    assert list(statistics.describe(samples)) == list(expected)[:5]


@pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix])
def test_count_statistics(layout):
    counts = layout(np.array([[1, 3, 0], [0, 0, 0], [9, 9, 9], [2, 0, 8]], dtype=np.float32))
    found = statistics.count_statistics(counts, np.array([0, 1, 3]))
    np.testing.assert_allclose(found["raw_mean"], [1, 1, 8 / 3])
    np.testing.assert_allclose(found["non_zeros_proportion"], [2 / 3, 1 / 3, 1 / 3])
    expected = np.array([2500 + 2000, 7500, 8000]) / 3  # the empty cell adds nothing
    np.testing.assert_allclose(found["raw_normalized_mean"], expected)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return 9 cells in groups a, b, c; a stand-in for the model gives each group its own draws."""
    rng = np.random.default_rng(1)
    cells = SimpleNamespace(
        counts=sp.csr_matrix(rng.poisson(1, (9, 4)).astype(np.float32) * [1, 1, 1, 0]),
        obs=pd.DataFrame({"g": list("aabbbcccc")}, index=[f"cell{i}" for i in range(9)]),
        genes=["w", "x", "y", "z"],
        draws=lambda cells: np.random.default_rng(set_code(cells)).dirichlet(np.ones(4), 50),
    )

    def set_code(indices: np.ndarray) -> int:
        return int(sum(2 ** int(i) for i in set(np.asarray(indices).tolist())))

    def stand_in(query):
        return [cells.draws(query.cells)]

    monkeypatch.setattr(differential, "decode_cells", stand_in)
    cells.data = CellData(cells.counts, condition=np.arange(9) % 2)
    return cells


def run(given: SimpleNamespace, pairs: list[GroupPair], **kwargs: object) -> pd.DataFrame:
    settings = DifferentialSettings(**({"n_samples_overall": 50, "fewest_counts": 0} | kwargs))
    query = Query(ANY_MODULE, given.data, np.arange(9))
    return differential_expression(query, pairs, given.genes, settings)


def without_order(table: pd.DataFrame) -> pd.DataFrame:
    by = [*(["comparison"] if "comparison" in table else []), "index"]
    return table.reset_index().sort_values(by, ignore_index=True)


CASES = {
    "all groups": {"groupby": "g"},
    "one with one": {"groupby": "g", "group1": "a", "group2": "c"},
    "some": {"groupby": "g", "group1": ["c", "a"]},
    "indices": {"idx1": [0, 1], "idx2": [5, 6, 7, 8]},
    "query and mask": {"idx1": "g == 'a'", "idx2": np.arange(9) > 4},
    "indices and rest": {"idx1": [0, 1]},
}
OPTIONS = {
    "vanilla": {"mode": "vanilla"},
    "vanilla without counts": {"mode": "vanilla", "all_stats": False},
    "change": {},
    "no counts": {"all_stats": False},
    "options": {
        "delta": 0.6,
        "fdr_target": 0.4,
        "test_mode": "two",
        "cred_interval_lvls": [0.5, 0.95],
    },
    "given pseudocount": {"pseudocounts": 0.01, "change_fn": "log-fold"},
    "threshold": {"threshold_counts": 1.1},
    "functions": {
        "change_fn": lambda x, y, pc: x - y + pc,
        "m1_domain_fn": lambda change: (change > 0.1, change < -0.2),
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cells", CASES.values(), ids=CASES)
def test_same_table_as_scvi_from_the_same_draws(given, cells, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("scvi")
        from scvi.model._utils import scrna_raw_counts_properties
        from scvi.model.base._de_core import _de_core

    adata = ad.AnnData(given.counts, obs=given.obs.copy())
    manager = SimpleNamespace(adata=adata, get_from_registry=lambda _key: adata.X)
    scvi_options = {"mode": "change", "delta": 0.25, "all_stats": True} | options
    expected = _de_core(
        manager,
        lambda _adata, indices, **_: given.draws(indices),
        representation_fn=None,
        **({"groupby": None, "group1": None, "group2": None, "idx1": None, "idx2": None} | cells),
        all_stats_fn=scrna_raw_counts_properties,
        col_names=given.genes,
        batchid1=None,
        batchid2=None,
        batch_correction=False,
        fdr=scvi_options.pop("fdr_target", 0.05),
        silent=True,
        **scvi_options,
    )
    found = run(given, group_pairs(given.obs, **cells), **options)
    if "m1_domain_fn" in options:  # scvi-tools reports a delta that it did not use
        assert found.pop("delta").isna().all()
        del expected["delta"]
    assert list(found.columns) == list(expected.columns)
    key = "proba_de" if "proba_de" in found else "bayes_factor"
    np.testing.assert_allclose(found[key], expected[key], rtol=1e-6)  # the same order, but for ties
    pd.testing.assert_frame_equal(
        without_order(found), without_order(expected), check_dtype=False, rtol=1e-6, atol=1e-6
    )


def test_columns_rows_and_order(given):
    pairs = group_pairs(given.obs, groupby="g")
    table = run(given, pairs, cred_interval_lvls=[0.9])
    interval = [f"lfc_confidence_interval_0.9_{end}" for end in ("min", "max")]
    assert list(table) == [*CHANGE, *LFC, *interval, *COUNTS, "is_de_fdr_0.05", *NAMES]
    assert table["comparison"].unique().tolist() == ["a vs Rest", "b vs Rest", "c vs Rest"]
    for _, part in table.groupby("comparison"):
        assert sorted(part.index) == given.genes
        assert part["proba_de"].is_monotonic_decreasing
    vanilla = run(given, pairs[:1], mode="vanilla", all_stats=False)
    assert list(vanilla) == ["proba_m1", "proba_m2", *BAYES, *NAMES]
    by_index = run(given, group_pairs(given.obs, idx1=[0]), all_stats=False, fdr_target=0.1)
    assert list(by_index) == [*CHANGE, *LFC, "is_de_fdr_0.1"]


def test_vanilla_by_hand(given):
    given.draws = lambda cells: (
        np.array([[0.4, 0.6], [0.7, 0.3], [0.2, 0.8], [0.5, 0.5]])
        if 0 in cells
        else np.array([[0.3, 0.7], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8]])
    )
    given.genes, given.data = ["x", "y"], CellData(given.counts[:, :2])
    table = run(given, [GroupPair(np.array([0]), np.array([1]))], mode="vanilla")
    np.testing.assert_allclose(table.loc[["x", "y"], "proba_m1"], [0.75, 0.25])
    np.testing.assert_allclose(table.loc["x", ["scale1", "scale2"]].tolist(), [0.45, 0.35])
    assert table.loc["x", "bayes_factor"] == pytest.approx(np.log(3))
    assert table.index.tolist() == ["x", "y"]


def test_change_by_hand(given):
    """Tested with the pseudocount, here 1; reported with a thousandth of it."""
    given.draws = lambda cells: (
        np.array([[3.0, 1.0], [1.0, 1.0]]) if 0 in cells else np.array([[0.0, 1.0], [1.0, 3.0]])
    )
    given.genes, given.data = ["x", "y"], CellData(given.counts[:, :2])
    settings = {"pseudocounts": 1.0, "delta": 0.5, "all_stats": False, "n_samples_overall": 2}
    table = run(given, [GroupPair(np.array([0]), np.array([1]))], **settings)
    reported = np.log2([3.001 / 0.001, 1.001 / 3.001])
    expected = {  # changes: 2 and 0 for x, 0 and -1 for y
        "proba_de": [0.5, 0.5],
        "proba_not_de": [0.5, 0.5],
        "bayes_factor": [0.0, 0.0],
        "scale1": [2.0, 1.0],
        "scale2": [0.5, 2.0],
        "pseudocounts": [1.0, 1.0],
        "delta": [0.5, 0.5],
        "lfc_mean": reported / 2,
        "lfc_median": reported / 2,
        "lfc_std": abs(reported) / 2,
        "lfc_min": np.minimum(reported, 0),
        "lfc_max": np.maximum(reported, 0),
        "is_de_fdr_0.05": [False, False],
    }
    assert list(table) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(table[name].astype(float), values, err_msg=name)


def test_permuting_pairs_leaves_the_scales_alone(given):
    pairs = group_pairs(given.obs, idx1=[0, 1])
    permuted = run(given, pairs, use_permutation=True, m_permutation=7)
    plain = run(given, pairs)
    for name in ("scale1", "scale2"):
        np.testing.assert_array_equal(permuted[name].sort_index(), plain[name].sort_index())
    assert not permuted["lfc_mean"].sort_index().equals(plain["lfc_mean"].sort_index())


def test_delta_none_is_seeded_and_reported(given):
    given.genes = [str(i) for i in range(12)]
    given.data = CellData(np.ones((9, 12), dtype=np.float32))
    given.draws = lambda cells: np.random.default_rng(min(cells)).dirichlet(np.ones(12), 50)
    pairs = group_pairs(given.obs, idx1=[0, 1])

    def table() -> pd.DataFrame:
        with seeded(3):
            return run(given, pairs, delta=None)

    assert table()["delta"].nunique() == 1
    pd.testing.assert_frame_equal(table(), table())


@pytest.mark.parametrize("name", ["change_fn", "m1_domain_fn"])
def test_functions_of_the_wrong_shape_are_refused(given, name):
    wrong = {
        "change_fn": lambda x, _y, _pc: x[0],
        "m1_domain_fn": lambda change: (change[0], change[0]),
    }[name]
    with pytest.raises(ValueError, match=rf"{name} must return arrays .* \(50, 4\).* not \(4,\)"):
        run(given, group_pairs(given.obs, idx1=[0]), **{name: wrong})
