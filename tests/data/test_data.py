"""What users register, what is refused and in which words, and what the model then sees."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.data import Setup
from pyro_contrastive.data.indices import as_indices, populations
from pyro_contrastive.testing import SimulationSettings, simulate

KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}


@pytest.fixture
def adata() -> ad.AnnData:
    cells = simulate(SimulationSettings(n_background=10, n_target=15, n_genes=6))
    cells.obs["chip"] = np.resize(["a", "b", "c"], cells.n_obs)
    cells.obs["score"] = np.linspace(-1, 1, cells.n_obs)
    cells.layers["counts"] = cells.X.copy()
    return cells


def register(adata: ad.AnnData, **keys: Any) -> Setup:
    ContrastiveVI.setup_anndata(adata, **(KEYS | keys))
    return Setup.of(adata)


def dense_counts(adata: ad.AnnData) -> np.ndarray:
    return adata.layers["counts"].toarray()


# How counts may be stored


STORED = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
    "dense": lambda x: x.toarray(),
    "fortran": lambda x: np.asfortranarray(x.toarray()),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint16"])
@pytest.mark.parametrize("stored", STORED)
def test_counts_are_read_however_they_are_stored(adata, stored, dtype):
    adata.X = STORED[stored](adata.X.astype(dtype))
    batch = register(adata).extract(adata).cells(np.array([3, 0, 24]))
    assert batch.x.dtype.is_floating_point
    np.testing.assert_array_equal(batch.x.numpy(), dense_counts(adata)[[3, 0, 24]])


def test_counts_in_a_layer(adata):
    adata.X = sp.csr_matrix(np.log1p(adata.X.toarray()))
    batch = register(adata, layer="counts").extract(adata).cells(np.arange(25))
    np.testing.assert_array_equal(batch.x.numpy(), dense_counts(adata))


@pytest.mark.filterwarnings("ignore:There (is|are) only")
def test_a_view_may_be_registered_and_read(adata):
    view = adata[::2, [5, 1, 2]]
    expected = dense_counts(adata)[::2][:, [5, 1, 2]]
    batch = register(view).extract(view).cells(np.arange(13))
    np.testing.assert_array_equal(batch.x.numpy(), expected)
    assert "_pyro_contrastive" not in adata.uns


def test_a_view_of_registered_data_keeps_the_registration(adata):
    register(adata)
    view = adata[5:20]
    batch = Setup.of(view).extract(view).cells(np.arange(15))
    np.testing.assert_array_equal(batch.x.numpy(), dense_counts(adata)[5:20])
    assert batch.condition.tolist() == [0] * 5 + [1] * 10


# What is refused


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stored", ["csr", "csc", "dense"])
def test_values_that_are_not_finite_are_named(adata, stored, value):
    counts = np.ones(adata.shape, dtype=np.float32)
    counts[7, 4] = value
    adata.X = STORED[stored](sp.csr_matrix(counts))
    with pytest.raises(ValueError, match=rf"1 of its values .* {value:g}, cell '7', gene '4'"):
        register(adata)


def test_missing_layer_lists_the_layers(adata):
    with pytest.raises(KeyError, match=r"\['raw'\] does not exist.*'counts', 'scale'"):
        register(adata, layer="raw")


@pytest.mark.parametrize(
    "keys",
    [
        {"batch_key": "lane"},
        {"labels_key": "lane"},
        {"size_factor_key": "lane"},
        {"condition_key": "lane"},
        {"categorical_covariate_keys": ["lane"]},
        {"continuous_covariate_keys": ["lane"]},
    ],
)
def test_missing_column_lists_the_columns(adata, keys):
    with pytest.raises(KeyError, match=r"'lane' is not a column.*'condition'.*'chip', 'score'"):
        register(adata, **keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"batch_key": "column"},
        {"condition_key": "column", "background": "x"},
        {"categorical_covariate_keys": ["column"]},
        {"continuous_covariate_keys": ["column"]},
        {"size_factor_key": "column"},
    ],
)
def test_missing_values_are_counted(adata, keys):
    is_number = {"continuous_covariate_keys", "size_factor_key"} & set(keys)
    column = np.ones(adata.n_obs) if is_number else np.full(adata.n_obs, "x", dtype=object)
    column[[2, 3]] = np.nan
    adata.obs["column"] = column
    with pytest.raises(ValueError, match=r"obs\['column'\] is missing \(NaN\) in 2 cells.*drop"):
        register(adata, **keys)


def test_background_must_be_a_condition(adata):
    with pytest.raises(ValueError, match=r"background='ctrl' must be one of.*'control', 'treated'"):
        register(adata, background="ctrl")
    message = r"one of \['control', 'treated'\], not \['control'\]"
    with pytest.raises(ValueError, match=message):
        register(adata, background=["control"])


def test_condition_needs_a_background_and_the_other_way_round(adata):
    with pytest.raises(ValueError, match=r"needs background=, one of \['control', 'treated'\]"):
        ContrastiveVI.setup_anndata(adata, condition_key="condition")
    with pytest.raises(ValueError, match="give condition_key= too"):
        ContrastiveVI.setup_anndata(adata, background="control")


def test_only_background_cells(adata):
    cells = adata[:10].copy()
    with pytest.raises(ValueError, match="no target cells"):
        register(cells)


def test_repeated_genes_are_named(adata):
    adata.var_names = ["a", "b", "a", "c", "d", "e"]
    with pytest.raises(ValueError, match=r"1 repeat, e.g. \['a'\].*var_names_make_unique"):
        register(adata)


def test_backed_data_say_how_to_read_them(adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(ValueError, match="to_memory"):
        register(backed)
    backed.file.close()


@pytest.mark.parametrize("part", [np.s_[:0], np.s_[:, :0]])
def test_no_cells_or_no_genes(adata, part):
    with pytest.raises(ValueError, match=r"has \d+ cells and \d+ genes: there is no data"):
        register(adata[part].copy())


def test_no_counts_names_the_layer_that_has_some(adata):
    adata.X = None
    with pytest.raises(ValueError, match=r"adata.X is empty.*layer=\"counts\""):
        register(adata)


def test_covariate_keys_must_be_lists(adata):
    with pytest.raises(TypeError, match="must be a list of columns, not the string 'chip'"):
        register(adata, categorical_covariate_keys="chip")


def test_continuous_covariates_must_be_finite_numbers(adata):
    with pytest.raises(ValueError, match=r"'chip'\] must hold numbers"):
        register(adata, continuous_covariate_keys=["chip"])
    adata.obs.loc["3", "score"] = np.inf
    with pytest.raises(ValueError, match=r"'score'\] is infinite in 1 cells"):
        register(adata, continuous_covariate_keys=["score"])


def test_size_factors_must_be_positive(adata):
    with pytest.raises(ValueError, match=r"'score'\] must be positive"):
        register(adata, size_factor_key="score")


# What is accepted, and what it does to the AnnData


def test_empty_cells_are_counted_in_a_warning(adata):
    counts = adata.X.toarray()
    counts[[1, 4, 20]] = 0
    adata.X = sp.csr_matrix(counts)
    with pytest.warns(UserWarning, match="^3 of 25 cells have no counts") as caught:
        register(adata)
    assert caught[0].filename == __file__  # points at the caller, not at us


def test_large_continuous_covariates_are_warned_of(adata):
    adata.obs["total"] = np.linspace(-20_000, 100, adata.n_obs)
    adata.obs["percent"] = np.linspace(0, 100, adata.n_obs)
    with pytest.warns(UserWarning, match=r"large: adata.obs\['total'\] up to 20,000\. ") as caught:
        register(adata, continuous_covariate_keys=["percent", "total"])
    assert caught[0].filename == __file__


def test_only_uns_changes_and_the_record_survives_a_file(adata, tmp_path):
    before = adata.copy()
    setup = register(
        adata,
        batch_key="chip",
        continuous_covariate_keys=["score"],
        categorical_covariate_keys=["chip"],
        size_factor_key="library",
        layer="counts",
    )
    record = adata.uns.pop("_pyro_contrastive")
    assert not adata.uns
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert (adata.X != before.X).nnz == 0
    assert adata.layers.keys() == before.layers.keys()

    adata.uns["_pyro_contrastive"] = record
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert Setup.of(ad.read_h5ad(tmp_path / "cells.h5ad")) == setup


def test_a_failed_registration_leaves_no_record(adata):
    adata.layers["counts"][0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        register(adata, layer="counts")
    assert "_pyro_contrastive" not in adata.uns


def test_unregistered_data_say_what_to_call(adata):
    with pytest.raises(ValueError, match=r"ContrastiveVI.setup_anndata\(adata"):
        ContrastiveVI(adata)


@pytest.mark.filterwarnings("ignore:Continuous covariates go")
def test_codes_of_batch_and_covariates(adata):
    adata.obs["plate"] = pd.Categorical(
        np.resize(["p2", "p10"], 25), categories=["p2", "unused", "p10"]
    )
    setup = register(
        adata,
        batch_key="chip",
        categorical_covariate_keys=["plate", "chip"],
        continuous_covariate_keys=["score", "library"],
        size_factor_key="library",
    )
    assert (setup.n_batch, setup.n_cats_per_cov) == (3, (2, 3))
    assert setup.categories["plate"] == ["p2", "p10"]  # the order of the categories, less unused
    some = np.array([4, 1])
    batch = setup.extract(adata).cells(some)
    assert batch.batch.tolist() == [1, 1]
    assert batch.categorical.tolist() == [[0, 1], [1, 1]]
    obs = adata.obs.iloc[some]
    np.testing.assert_allclose(batch.continuous, obs[["score", "library"]], rtol=1e-6)
    unit = adata.X.sum(1).mean() / adata.obs["library"].mean()  # to the scale of counts
    np.testing.assert_allclose(batch.library, unit * obs[["library"]], rtol=1e-5)


def test_without_size_factors_the_library_is_the_total_count(adata):
    batch = register(adata).extract(adata).cells(np.arange(25))
    np.testing.assert_array_equal(batch.library.numpy().ravel(), dense_counts(adata).sum(1))


def test_unused_conditions_do_not_count(adata):
    adata.obs["condition"] = pd.Categorical(
        adata.obs["condition"], categories=["never", "treated", "control"]
    )
    assert register(adata).conditions == ("control", "treated")


def test_a_background_that_is_an_unused_category_is_refused(adata):
    adata.obs["condition"] = adata.obs["condition"].astype("category")
    cells = adata[10:].copy()
    cells.obs["condition"] = pd.Categorical(["treated"] * 15, categories=["control", "treated"])
    with pytest.raises(ValueError, match=r"background='control' must be one of.*\['treated'\]"):
        register(cells)


@pytest.mark.parametrize(
    ("values", "background", "names"),
    [
        ([0, 1], 0, ("0", "1")),
        ([0, 1], "0", ("0", "1")),
        ([0, 1], 1, ("1", "0")),
        ([0.0, 1.0], 0, ("0.0", "1.0")),
        ([False, True], False, ("False", "True")),
        ([False, True], np.False_, ("False", "True")),
        ([False, True], "False", ("False", "True")),
        ([2, 10], 10, ("10", "2")),
        (["0", "1"], 0, ("0", "1")),
    ],
)
@pytest.mark.parametrize("as_category", [False, True])
def test_conditions_that_are_not_strings(adata, values, background, names, as_category):
    column = pd.Series(np.resize(np.array(values), 25), index=adata.obs_names)
    adata.obs["code"] = column.astype("category") if as_category else column
    setup = register(adata, condition_key="code", background=background)
    assert setup.conditions == names
    is_background = column.astype(str) == names[0]
    assert setup.extract(adata).condition.tolist() == (~is_background).astype(int).tolist()
    with pytest.raises(ValueError, match="background=7 must be one of"):
        register(adata, condition_key="code", background=7)


@pytest.mark.filterwarnings("ignore:There (is|are) only")
def test_numbers_keep_their_order_as_categories(adata):
    adata.obs["dose"] = np.resize([10, 2, 0, 1], 25)
    setup = register(adata, condition_key="dose", background=1)
    assert setup.conditions == ("1", "0", "2", "10")


@pytest.mark.filterwarnings("ignore:There (is|are) only")
def test_more_than_two_conditions(adata):
    adata.obs["condition"] = np.resize(["drug b", "none", "drug a"], 25)
    setup = register(adata, background="none")
    assert setup.conditions == ("none", "drug a", "drug b")
    assert setup.extract(adata).condition[:3].tolist() == [2, 0, 1]


# New data


def test_unseen_batch_lists_the_known_ones(adata):
    setup = register(adata, batch_key="chip")
    new = adata.copy()
    new.obs["chip"] = np.resize(["z", "b", "y"], 25)
    with pytest.raises(ValueError, match=r"\['y', 'z'\]. Known are \['a', 'b', 'c'\]"):
        setup.extract(new)


def test_new_data_keep_the_codes_of_the_registered_ones(adata):
    setup = register(adata, batch_key="chip")
    new = adata[adata.obs["chip"] == "c"].copy()
    assert set(setup.extract(new).batch.tolist()) == {2}


def test_genes_in_another_order(adata):
    setup = register(adata)
    for turned in (adata[:, ::-1], adata[:, ::-1].copy()):
        np.testing.assert_array_equal(setup.extract(turned).counts.toarray(), dense_counts(adata))


def test_missing_genes_are_named_and_further_ones_left_out(adata):
    setup = register(adata)
    with pytest.raises(
        ValueError, match=r"lacks 2 of the 6 genes.*e.g. \['1', '4'\].*fill_missing"
    ):
        setup.extract(adata[:, ["0", "2", "3", "5"]])
    subset = adata[:, [3, 1]].copy()
    setup = register(subset)
    np.testing.assert_array_equal(
        setup.extract(adata).counts.toarray(), dense_counts(adata)[:, [3, 1]]
    )


def test_a_model_of_data_subset_after_registration_is_refused(adata):
    register(adata)
    with pytest.raises(ValueError, match=r"lacks 2 of the 6 genes.*Call setup_anndata"):
        ContrastiveVI(adata[:, :4].copy())


# The prior of a latent library size


def test_library_moments_by_batch(adata):
    totals = dense_counts(adata).sum(1).astype(float)
    means, variances = register(adata, batch_key="chip").extract(adata).library_moments(3)
    for code, chip in enumerate("abc"):
        logs = np.log(totals[adata.obs["chip"] == chip])
        np.testing.assert_allclose([means[code], variances[code]], [logs.mean(), logs.var()])


@pytest.mark.filterwarnings("ignore:.*occur in one condition")
def test_library_moments_of_a_batch_with_one_cell_and_of_empty_cells(adata):
    counts = adata.X.toarray()
    counts[5] = 0
    adata.X = sp.csr_matrix(counts)
    adata.obs["chip"] = ["alone"] + ["rest"] * 24
    with pytest.warns(UserWarning, match="no counts"):
        data = register(adata, batch_key="chip").extract(adata)
    means, variances = data.library_moments(2)
    logs = np.log(np.delete(counts.sum(1), 5))
    np.testing.assert_allclose(means, [logs[0], logs[1:].mean()], rtol=1e-5)
    np.testing.assert_allclose(variances, [logs.var(), logs[1:].var()], rtol=1e-5)


def test_library_moments_of_equal_totals_are_refused(adata):
    adata.X = np.ones(adata.shape)
    with pytest.raises(ValueError, match=r"same total count.*use_observed_lib_size=True"):
        register(adata).extract(adata).library_moments(1)


@pytest.mark.filterwarnings("ignore:.*more than there are genes")
def test_size_factors_and_a_latent_library_exclude_each_other(adata):
    register(adata, size_factor_key="library")
    with pytest.raises(ValueError, match="use_observed_lib_size=True"):
        ContrastiveVI(adata, use_observed_lib_size=False)


# Indices


MASK = np.array([True, False, False, True])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ([2, 0], [2, 0]),
        (np.array([2, 0], dtype=np.uint8), [2, 0]),
        (np.array([-1]), [3]),
        (range(1, 3), [1, 2]),
        ([], []),
        (MASK, [0, 3]),
        (MASK.tolist(), [0, 3]),
        (pd.Series(MASK), [0, 3]),
        (pd.Series(MASK, dtype="boolean"), [0, 3]),
    ],
)
def test_indices_as_users_give_them(given, expected):
    assert as_indices(given, 4).tolist() == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (MASK[:3], r"mask of shape \(3,\); there are 4 cells"),
        ([4], "holds 4 to 4; there are 4 cells"),
        ([-5, 1], "holds -5 to 1"),
        ([0.0, 1.0], "list of integers .* not an array of float64"),
        (["cell"], "list of integers"),
        ([[0, 1]], r"shape \(1, 2\)"),
        (3, "list of integers"),
    ],
)
def test_wrong_indices(given, message):
    with pytest.raises(ValueError, match=message):
        as_indices(given, 4)


def test_populations_by_condition_or_by_index():
    condition = np.array([1, 0, 2, 0])
    by_condition = populations(condition, None, None, 4)
    assert [p.tolist() for p in by_condition] == [[1, 3], [0, 2]]
    by_index = populations(condition, [0], MASK & [False, True, True, True], 4)
    assert [p.tolist() for p in by_index] == [[0], [3]]


@pytest.mark.parametrize(
    ("background", "target", "message"),
    [
        (None, None, "Which cells are background"),
        ([0], None, "Give both"),
        (None, [0], "Give both"),
        ([0, 1], [1, 2], "1 cells are both background and target, e.g. cell 1"),
        ([3], [-1], "both background and target"),
        ([0, 0], [1], "background_indices names some cells twice"),
        ([], [1], "no background cells"),
        ([0], [], "no target cells"),
    ],
)
def test_wrong_populations(background, target, message):
    with pytest.raises(ValueError, match=message):
        populations(None, background, target, 4)


@pytest.mark.filterwarnings("ignore:There (is|are) only")
def test_given_populations_override_the_condition_and_keep_treatments(adata):
    adata.obs["condition"] = np.resize(["none", "a", "b"], 25)
    data = register(adata, background="none").extract(adata)
    changed = data.with_condition(background=np.array([1]), target=np.array([0, 2]))
    assert changed.condition[:4].tolist() == [1, 0, 2, 0]
    assert data.condition[:3].tolist() == [0, 1, 2]  # the data given are left alone


def test_cells_of_unknown_condition_are_taken_for_target(adata):
    ContrastiveVI.setup_anndata(adata)
    batch = Setup.of(adata).extract(adata).cells(np.arange(3))
    assert batch.condition.tolist() == [1, 1, 1]


@pytest.mark.parametrize("where", ["indices", "indptr"])
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix])
def test_a_damaged_sparse_matrix_is_refused_before_compiled_code_follows_it(kind, where):
    adata = simulate(SimulationSettings(n_background=20, n_target=20, n_genes=10), seed=0)
    adata.X = kind(adata.X)
    getattr(adata.X, where)[3] = 2 * 10**9
    with pytest.raises(ValueError, match=r"adata\.X is a damaged sparse matrix"):
        ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
