"""Every statistic of a check, by hand on a 4 x 3 matrix."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from ppc_helpers import checked
from scipy.sparse import csr_matrix

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.analysis.ppc import (
    PosteriorPredictiveCheck,
    ReplicateStream,
    Statistic,
    statistics,
)
from pyro_contrastive.analysis.ppc.statistics import (
    ALL_STATISTICS,
    CELL_STATISTICS,
    GENE_STATISTICS,
    NEED_COUNTS,
    BuiltIn,
)
from pyro_contrastive.analysis.ppc.sums import RankSums
from pyro_contrastive.analysis.ppc.tables import compare

COUNTS = np.array([[0, 2, 1], [0, 0, 3], [4, 0, 5], [0, 6, 7]], dtype=np.float32)
CONDITION = ["control", "control", "treated", "treated"]
BATCH = ["x", "y", "x", None]
NO_REPLICATES = ReplicateStream(lambda: [], 19)
GENES, CELLS = ["a", "b", "c"], ["c1", "c2", "c3", "c4"]


def check(observed=COUNTS, replicates=None, **arguments) -> PosteriorPredictiveCheck:
    if replicates is None:
        replicates = np.repeat(COUNTS[None], 19, axis=0)
    given = {
        "groups": {"condition": CONDITION, "batch": BATCH},
        "contrast": ("condition", "control"),
        "gene_names": GENES,
        "cell_names": CELLS,
        "seed": 0,
    }
    return checked(observed, replicates, **(given | arguments))


def values(table: pd.DataFrame, statistic: str, group: tuple[str, str] = ("all", "all")):
    chosen = (table["statistic"] == statistic) & (table["group_by"] == group[0])
    found = table[chosen & (table["group"] == group[1])]
    # The replicates are the data once more: what is found of them is the same.
    np.testing.assert_allclose(found["replicate_mean"], found["observed"])
    return found["observed"].to_numpy()


@pytest.mark.parametrize("observed", [COUNTS, csr_matrix(COUNTS)], ids=["dense", "sparse"])
def test_genes(observed):
    genes = check(observed).genes
    assert values(genes, "mean") == pytest.approx([1, 2, 4])
    assert values(genes, "variance") == pytest.approx([3, 6, 5])
    assert values(genes, "cv") == pytest.approx([3**0.5, 6**0.5 / 2, 5**0.5 / 4])
    assert values(genes, "zero_fraction") == pytest.approx([0.75, 0.5, 0])
    assert values(genes, "maximum") == pytest.approx([4, 6, 7])
    assert genes["gene"][:3].tolist() == GENES


def test_genes_in_groups_of_cells():
    genes = check().genes
    control, treated = ("condition", "control"), ("condition", "treated")
    assert values(genes, "mean", control) == pytest.approx([0, 1, 2])
    assert values(genes, "variance", treated) == pytest.approx([4, 9, 1])
    assert values(genes, "zero_fraction", control) == pytest.approx([1, 0.5, 0])
    assert values(genes, "maximum", ("batch", "x")) == pytest.approx([4, 2, 5])
    assert np.isnan(genes.query("statistic == 'cv' and group == 'control'")["observed"].iloc[0])
    # The last cell has no batch: it is in no group of that key.
    assert values(genes, "mean", ("batch", "y")) == pytest.approx([0, 0, 3])
    assert set(genes["group"]) == {"all", "control", "treated", "x", "y"}


def test_cells():
    cells = check().cells
    assert values(cells, "library_size") == pytest.approx([3, 3, 9, 13])
    assert values(cells, "mean") == pytest.approx([1, 1, 3, 13 / 3])
    assert values(cells, "variance") == pytest.approx([2 / 3, 2, 14 / 3, 86 / 9])
    expected = [(2 / 3) ** 0.5, 2**0.5, (14 / 3) ** 0.5 / 3, (86 / 9) ** 0.5 * 3 / 13]
    assert values(cells, "cv") == pytest.approx(expected)
    assert values(cells, "zero_fraction") == pytest.approx([1 / 3, 2 / 3, 1 / 3, 1 / 3])
    assert values(cells, "maximum") == pytest.approx([2, 3, 5, 7])
    assert cells["cell"][:4].tolist() == CELLS


def test_overall_is_the_mean_over_genes_or_cells():
    overall = check().overall
    genes, cells = overall[overall["unit"] == "gene"], overall[overall["unit"] == "cell"]
    assert values(genes, "zero_fraction") == pytest.approx([1.25 / 3])
    assert values(genes, "variance", ("condition", "treated")) == pytest.approx([14 / 3])
    assert values(cells, "library_size") == pytest.approx([7])
    assert values(cells, "library_size", ("condition", "treated")) == pytest.approx([11])
    # Of gene "a" the control cells have no coefficient of variation: it is left out.
    assert values(genes, "cv", ("condition", "control")) == pytest.approx([0.75])
    assert (overall["share_outside"].dropna() == 0).all()


def test_trends_are_averages_over_genes_of_like_mean():
    trends = check().trends  # three genes are one bin
    assert values(trends, "variance_trend") == pytest.approx([90 ** (1 / 3)])
    assert values(trends, "zero_fraction_trend") == pytest.approx([1.25 / 3])
    assert trends["bin_mean"].to_numpy() == pytest.approx(8 ** (1 / 3))
    # Ten genes make two bins of five. The first has means 1 to 5, and one gene that varies.
    low, high = np.arange(1, 6.0), np.arange(11, 16.0)
    x = np.tile(np.concatenate([low, high]), (4, 1))
    x[:, 0] = [0, 2, 0, 2]  # mean 1, variance 1, zero fraction 1/2
    x[:, 9] += [2, -2, 2, -2]  # mean 15, variance 4
    found = checked(x, np.repeat(x[None], 19, 0)).trends
    assert values(found, "variance_trend") == pytest.approx([1, 4])  # constant genes have none
    assert values(found, "zero_fraction_trend") == pytest.approx([0.1, 0])


def test_correlations():
    raw = check(are_counts=False).correlations
    expected = [-2 / 18**0.5, 1 / 15**0.5, 3 / 30**0.5]
    assert values(raw, "correlation") == pytest.approx(expected)
    assert raw[["gene", "other_gene"]][:3].to_numpy().tolist() == [
        ["a", "b"],
        ["a", "c"],
        ["b", "c"],
    ]
    logs = np.corrcoef(np.log1p(COUNTS), rowvar=False)
    found = check().correlations
    assert values(found, "correlation") == pytest.approx(logs[np.triu_indices(3, 1)])
    overall = check().overall
    assert values(overall, "abs_correlation") == pytest.approx(
        [abs(logs[np.triu_indices(3, 1)]).mean()]
    )
    # Gene "a" is 0 in all control cells: it has no correlation there, and no 0 / 0 warning.
    control = found[found["group"] == "control"]["observed"].to_numpy()
    assert np.isnan(control).tolist() == [True, True, False]
    chosen = check(correlation_genes=[2, 0]).correlations
    assert chosen[["gene", "other_gene"]][:1].to_numpy().tolist() == [["c", "a"]]


def test_effects():
    result = check()
    before = 1e4 * np.array([0, 2, 4]) / 6
    after = 1e4 * np.array([4, 6, 12]) / 22
    found = result.effects
    expected = np.log2(after + 1) - np.log2(before + 1)
    assert values(found, "log2_fold_change", ("condition", "treated")) == pytest.approx(expected)
    assert set(found["group"]) == {"treated"}
    agreement = result.overall[result.overall["statistic"] == "effect_agreement"]
    assert agreement["observed"].to_numpy() == pytest.approx(1)
    differences = check(are_counts=False).effects
    assert values(differences, "difference", ("condition", "treated")) == pytest.approx([2, 2, 4])


def test_agreement_of_effects_is_a_correlation_over_genes():
    # Treatment turns genes a and b around in the data; the replicates know nothing of it.
    data = np.array([[4, 2, 9], [4, 2, 9], [2, 4, 9], [2, 4, 9]], dtype=np.float32)
    replicates = np.repeat(data[None, [2, 3, 0, 1]], 19, 0)
    result = check(data, replicates, statistics=["effect"])
    row = result.overall[result.overall["statistic"] == "effect_agreement"].iloc[0]
    assert row["observed"] == pytest.approx(-1)
    assert row["replicate_mean"] == pytest.approx(1)


def test_several_treatments_have_an_effect_each():
    labels = ["none", "none", "drug", "heat"]
    result = check(groups={"condition": labels}, contrast=("condition", "none"))
    expected = np.log2(1e4 * np.array([[4, 0, 5], [0, 6, 7]]) / [[9], [13]] + 1)
    expected -= np.log2(1e4 * np.array([0, 2, 4]) / 6 + 1)
    for group, change in zip(("drug", "heat"), expected, strict=True):
        found = values(result.effects, "log2_fold_change", ("condition", group))
        assert found == pytest.approx(change)


def test_interval_p_value_and_distance():
    replicates = np.array([[1.0], [2], [3], [4], [5], [6], [7], [8], [9]])
    found = compare(np.array([7.0]), replicates, 0.8)
    # Two replicates are above, one is equal.
    assert found["p_value"] == pytest.approx((2 + 0.5 + 0.5) / 10)
    assert found["replicate_mean"] == pytest.approx(5)
    assert (found["lower"][0], found["upper"][0]) == pytest.approx((1, 9))
    assert found["z"] == pytest.approx(2 / 7.5**0.5)
    with_gaps = compare(np.array([7.0]), np.where(replicates < 3, np.nan, replicates), 0.5)
    assert with_gaps["p_value"] == pytest.approx(3 / 8)
    assert with_gaps["replicate_mean"] == pytest.approx(6)
    nothing = compare(np.array([np.nan, 1]), np.array([[1, np.nan], [2, np.nan]]), 0.5)
    assert np.isnan(nothing["p_value"]).all()
    constant = compare(np.array([1.0, 2.0]), np.ones((9, 2)), 0.5)
    assert constant["z"].tolist() == [0, np.inf]


def test_randomised_ranks():
    class Half:
        def random(self, shape, dtype):
            return np.full(shape, 0.5, dtype)

    ranks = RankSums(1, (0.5,), 4, Half())
    observed = np.array([[2.0, 0.0], [5.0, 1.0]], dtype=np.float32)
    replicates = np.array([[[1, 0], [1, 2]], [[2, 0], [1, 2]], [[2, 0], [3, 3]]], dtype=np.float32)
    ranks.add(observed, replicates, np.zeros(2, dtype=np.int64))
    # u: (1 + .5 * 3) / 4, (0 + .5 * 4) / 4; (3 + .5) / 4, (0 + .5) / 4
    shares, _ = ranks.shares(np.array([0]))
    assert shares.tolist() == [0.25, 0, 0.5, 0.25]
    covered, error = ranks.coverage(np.array([0]))
    assert covered.tolist() == [0.5]  # both of the first cell, none of the second
    assert error == pytest.approx(0.5)  # standard deviation of (1, 0), n - 1, over sqrt(2)


def test_functions_of_the_user():
    functions = {
        "seen": lambda x: (x > 0).sum(axis=1),
        "over_2": lambda x: (x > 2).mean(axis=0),
        "largest": lambda x: x.max(),
    }
    custom = check(functions=functions).custom
    assert values(custom, "seen") == pytest.approx([2, 1, 2, 2])
    assert values(custom, "over_2") == pytest.approx([0.25, 0.25, 0.75])
    assert values(custom, "over_2", ("condition", "control")) == pytest.approx([0, 0, 0.5])
    assert values(custom, "largest") == pytest.approx([7])
    assert values(custom, "largest", ("batch", "x")) == pytest.approx([5])
    assert custom["unit"].astype(str).unique().tolist() == ["gene", "data", "cell"]
    summary = check(functions=functions).summary()
    assert {"seen", "over_2", "largest"} <= set(summary["statistic"])
    # As many cells as genes: a plain function's kind is found out all the same.
    square = check(
        COUNTS[:3],
        np.repeat(COUNTS[None, :3], 19, 0),
        groups={},
        contrast=None,
        cell_names=CELLS[:3],
        functions={"totals": lambda x: x.sum(axis=0)},
    )
    assert values(square.custom, "totals") == pytest.approx([4, 2, 9])


@pytest.mark.parametrize(
    ("functions", "error", "message"),
    [
        ([len], TypeError, "must be a dict"),
        ({"f": 3}, TypeError, "'f' must be a function of counts, not int"),
        ({"f": lambda x: x}, ValueError, r"returns shape \[4, 3\] for a matrix of 4 cells and 3"),
        (
            {"f": lambda x: x.sum(1) - x.mean()},
            ValueError,
            "another value when it is called with other cells",
        ),
        ({"f": Statistic(lambda x: x.sum(1), per="gene")}, ValueError, r"must return shape \[3\]"),
    ],
)
def test_functions_that_cannot_be_used(functions, error, message):
    with pytest.raises(error, match=message):
        check(functions=functions)


def test_some_cells_at_a_time_is_the_same_as_all_at_once():
    rng = np.random.default_rng(0)
    data, draws = rng.poisson(2.0, (30, 4)), rng.poisson(2.0, (19, 30, 4)).astype(np.float32)
    groups = {"condition": np.resize(["control", "treated"], 30), "batch": np.resize([1, 2, 3], 30)}
    given = {
        "groups": groups,
        "contrast": ("condition", "control"),
        "functions": {"seen": lambda x: (x > 0).sum(axis=1)},
        "seed": 0,
    }
    whole = checked(data, draws, **given)
    parts = checked(
        csr_matrix(data.astype(np.float32)),
        ReplicateStream(lambda: (draws[:, start : start + 7] for start in range(0, 30, 7)), 19),
        **given,
    )
    for name in ("overall", "genes", "cells", "trends", "correlations", "effects", "custom"):
        pd.testing.assert_frame_equal(getattr(whole, name), getattr(parts, name))
    pd.testing.assert_frame_equal(whole.calibration, parts.calibration)


def test_only_what_is_asked_for_is_found():
    result = check(statistics=["variance", "correlation"])
    assert set(result.genes["statistic"]) == {"variance"}
    assert set(result.cells["statistic"]) == {"variance"}
    assert len(result.correlations)
    for name in ("trends", "effects", "calibration", "pit", "custom"):
        assert getattr(result, name).empty
    assert check(statistics=["calibration"]).summary()["unit"].tolist() == ["entry"] * 4
    single = check(statistics=[], functions={"n": len}).summary()
    assert single[["statistic", "observed", "reading"]].to_numpy().tolist() == [["n", 4, "agrees"]]
    undefined = check(statistics=["cv"], observed=0 * COUNTS).summary()
    assert set(undefined["reading"]) == {"not defined"}
    everything = check()
    names = set(everything.overall["statistic"])
    assert names >= set(ALL_STATISTICS) - {"correlation", "effect", "calibration"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"statistics": "variance"}, TypeError, r"such as \['variance'\]"),
        ({"statistics": ["sd"]}, ValueError, r"\['sd'\] are not statistics; those are \['library"),
        ({"interval": 0.95}, ValueError, "at least n_samples=39 replicates, not 19"),
        ({"interval": 1.5}, ValueError, "between 0 and 1"),
        ({"groups": {"batch": ["x"]}, "contrast": None}, ValueError, "name 1 cells; there are 4"),
        ({"groups": {"all": BATCH}, "contrast": None}, ValueError, "cannot be called 'all'"),
        ({"contrast": ("condition", "none")}, ValueError, "'none' is not a group of 'condition'"),
        ({"gene_names": ["a"]}, ValueError, "gene_names has 1 names for 3"),
        ({"replicates": np.ones((19, 3, 3))}, ValueError, r"expected \[samples, 4, 3\]"),
        ({"replicates": NO_REPLICATES}, ValueError, "of 0 cells, and data of 4"),
        (
            {"replicates": ReplicateStream(lambda: [np.ones((3, 4, 3))], 19)},
            ValueError,
            r"shape \[3, 4, 3\] came for cells from 0 on; expected \[19, cells, 3\], 4 cells",
        ),
        (
            {"replicates": NO_REPLICATES, "observed": COUNTS[:0], "groups": {}},
            ValueError,
            "no cells",
        ),
    ],
)
def test_what_cannot_be_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        check(**arguments)


def test_statistics_of_counts_have_no_meaning_for_other_data():
    with pytest.raises(
        ValueError, match="cv, zero_fraction has no meaning with Gaussian: its data"
    ):
        check(are_counts=False, described="Gaussian", statistics=["cv", "zero_fraction", "mean"])
    found = check(are_counts=False)
    names = (
        set(found.genes["statistic"])
        | set(found.cells["statistic"])
        | set(found.trends["statistic"])
    )
    assert not names & NEED_COUNTS
    assert values(found.trends, "variance_trend") == pytest.approx([14 / 3])


def test_whole_replicates_that_would_not_fit_are_refused():
    large = csr_matrix((60_000, 10_000), dtype=np.float32)
    with pytest.raises(ValueError, match=r"a dense replicate takes 2\.4 GB, more than 2 GB"):
        checked(large, ReplicateStream(lambda: [], 19), functions={"f": lambda x: x.sum(axis=0)})
    with pytest.raises(ValueError, match=r"\['f'\] need all cells at once: give whole="):
        checked(
            COUNTS,
            ReplicateStream(lambda: [np.repeat(COUNTS[None], 19, 0)], 19),
            functions={"f": lambda x: x.sum(axis=0)},
        )


def test_models_side_by_side():
    worse = np.repeat(COUNTS[None] + 5, 19, axis=0)
    both = PosteriorPredictiveCheck.compare({"good": check(), "bad": check(replicates=worse)})
    assert both.genes["model"].cat.categories.tolist() == ["good", "bad"]
    assert len(both.genes) == 2 * len(check().genes)
    table = both.summary().set_index(["model", "statistic", "unit"])["reading"]
    assert table["good", "zero_fraction", "gene"] == "agrees"
    assert table["bad", "zero_fraction", "gene"] == "higher in the data"
    assert table["bad", "library_size", "cell"] == "lower in the data"
    assert both.summary("condition")["group"].unique().tolist() == ["control", "treated"]
    with pytest.raises(ValueError, match=re.escape("['all', 'condition', 'batch']")):
        both.summary("lane")
    with pytest.raises(ValueError, match="no checks"):
        PosteriorPredictiveCheck.compare({})
    with pytest.raises(ValueError, match=r"'b' has interval=0\.5, the first one 0\.9"):
        PosteriorPredictiveCheck.compare({"a": check(), "b": check(interval=0.5)})
    with pytest.raises(ValueError, match="'b' was made on other data than the first one"):
        PosteriorPredictiveCheck.compare({"a": check(), "b": check(COUNTS + 1)})


def test_it_prints_what_it_holds_and_not_all_of_it():
    found = check()
    text = repr(found)
    assert "summary()" in text
    assert f"genes ({len(found.genes)})" in text
    assert "custom" not in text  # there is none
    assert len(text) < 400


def test_the_method_names_every_statistic() -> None:
    documented = ContrastiveVI.posterior_predictive_check.__doc__ or ""
    assert [name for name in ALL_STATISTICS if f'"{name}"' not in documented] == []


def test_a_statistic_is_added_by_one_entry(monkeypatch):
    """An entry in one table is all that a new statistic of genes and cells needs."""
    seen = BuiltIn(lambda m: m.n - m.zeros, "cells that express it", "cells")
    monkeypatch.setitem(CELL_STATISTICS, "seen", seen)
    monkeypatch.setitem(GENE_STATISTICS, "seen", seen)
    monkeypatch.setattr(statistics, "ALL_STATISTICS", (*ALL_STATISTICS, "seen"))
    found = check(statistics=["seen"])
    assert values(found.genes, "seen").tolist() == [1, 2, 4]
    assert values(found.cells, "seen").tolist() == [2, 1, 2, 2]
    assert set(found.overall["unit"]) == {"gene", "cell"}
