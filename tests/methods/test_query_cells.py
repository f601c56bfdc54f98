"""Cells the model was not set up with: of an unknown condition, or of another dtype."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from pyro_contrastive import (
    ContrastiveVI,
    MixtureOfGaussians,
    NormalizingFlowPrior,
    PerConditionNormal,
    SparseSalient,
    VampPrior,
)
from pyro_contrastive.testing import SimulationSettings, simulate

SMALL = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
KNOWN = np.arange(4, 26)  # cells of `query` whose condition is a registered one


@pytest.fixture
def adata():
    made = simulate(SimulationSettings(n_background=12, n_target=14, n_genes=10), seed=0)
    made.obs["lane"] = np.array(["a", "b"])[np.arange(26) % 2]
    ContrastiveVI.setup_anndata(
        made, batch_key="lane", condition_key="condition", background="control"
    )
    return made


@pytest.fixture
def model(adata) -> ContrastiveVI:
    return ContrastiveVI(adata, **SMALL)


@pytest.fixture
def query(adata):
    """The same cells, but the first four: two of another treatment, two of which it is missing."""
    other = adata.copy()
    del other.uns["_pyro_contrastive"]
    other.obs["condition"] = other.obs["condition"].astype(object)
    other.obs.iloc[:4, other.obs.columns.get_loc("condition")] = ["drug", "drug", np.nan, None]
    return other


ENCODED = [
    ("get_latent_representation", {"representation_kind": "salient"}),
    ("get_latent_representation", {"representation_kind": "background"}),
    ("get_latent_representation", {"give_mean": False, "seed": 1}),
    ("get_latent_library_size", {}),
]


@pytest.mark.parametrize("latent_library", [False, True])
@pytest.mark.parametrize(("name", "arguments"), ENCODED)
def test_encoders_need_no_condition(adata, query, name, arguments, latent_library):
    model = ContrastiveVI(adata, use_observed_lib_size=not latent_library, **SMALL)
    expected = getattr(model, name)(**arguments)
    np.testing.assert_array_equal(getattr(model, name)(query, **arguments), expected)
    del query.obs["condition"]
    np.testing.assert_array_equal(getattr(model, name)(query, **arguments), expected)


DECODED = [
    ("get_normalized_expression", {}),
    ("get_salient_normalized_expression", {}),
    ("get_specific_normalized_expression", {"expression_type": "salient"}),
    ("get_counterfactual_expression", {"condition": "treated"}),
    ("get_treatment_effect", {"n_samples": 3, "interval": 0.5}),
    ("get_elbo", {}),
    ("get_reconstruction_error", {}),
    ("get_marginal_ll", {"n_mc_samples": 2}),
    ("differential_expression", {"groupby": "lane", "n_samples_overall": 20, "silent": True}),
]


@pytest.mark.parametrize(("name", "arguments"), [*DECODED, ("score_latents", {})])
def test_where_the_condition_matters_the_known_ones_are_listed(model, query, name, arguments):
    with pytest.raises(ValueError, match=r"4 of.*'None', 'drug', 'nan'.*'control', 'treated'\]"):
        getattr(model, name)(adata=query, **arguments)
    del query.obs["condition"]
    with pytest.raises(ValueError, match=r"26 of.*no column 'condition'.*'control', 'treated'\]"):
        getattr(model, name)(adata=query, **arguments)


def test_cells_that_are_not_asked_for_may_be_of_any_condition(model, query):
    found = model.get_normalized_expression(query, indices=KNOWN, seed=0)
    expected = model.get_normalized_expression(indices=KNOWN, seed=0)
    for kind, table in expected.items():
        pd.testing.assert_frame_equal(found[kind], table)
    elbo = model.get_elbo(query, indices=KNOWN, return_mean=False, seed=0)
    np.testing.assert_array_equal(elbo, model.get_elbo(indices=KNOWN, return_mean=False, seed=0))
    groups = {"idx1": np.arange(4, 12), "idx2": np.arange(12, 26)}
    quick = {"silent": True, "n_samples_overall": 50, "seed": 0}
    pd.testing.assert_frame_equal(
        model.differential_expression(query, **groups, **quick),
        model.differential_expression(**groups, **quick),
    )


def test_a_condition_is_not_needed_without_s_or_where_the_caller_names_the_target_cells(
    model, query
):
    without = model.get_normalized_expression(seed=0)["background"]
    found = model.get_specific_normalized_expression(query, expression_type="background", seed=0)
    pd.testing.assert_frame_equal(found, without)
    untreated = model.get_counterfactual_expression(
        "control", query, n_samples=1, quantity="scale", seed=0
    )
    pd.testing.assert_frame_equal(untreated, without)
    chosen = {"indices_to_return_salient": np.arange(12, 26), "seed": 0}
    pd.testing.assert_frame_equal(
        model.get_specific_normalized_expression(query, **chosen),
        model.get_specific_normalized_expression(**chosen),
    )
    named = {"groupby": "lane", "target_idx": np.arange(12, 26), "n_samples_overall": 50}
    pd.testing.assert_frame_equal(
        model.differential_expression(query, silent=True, seed=0, **named),
        model.differential_expression(silent=True, seed=0, **named),
    )


# Genes whose names repeat, as in data straight from Cell Ranger


def with_genes(adata, names):
    """The same cells with further genes, whose counts are 1."""
    more = np.ones((adata.n_obs, len(names) - adata.n_vars), dtype=np.float32)
    counts = np.hstack([adata.X.toarray(), more])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names are not unique
        return ad.AnnData(counts, obs=adata.obs, var=pd.DataFrame(index=names))


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize(("name", "arguments"), [*ENCODED, *DECODED])
def test_genes_that_the_model_does_not_have_may_repeat(model, adata, name, arguments):
    wide = with_genes(adata, [*adata.var_names, "TBCE", "HSPA14", "TBCE"])[:, ::-1].copy()
    arguments = arguments | ({"seed": 0} if name != "get_latent_library_size" else {})
    expected, found = (getattr(model, name)(adata=given, **arguments) for given in (adata, wide))
    if not isinstance(expected, dict):
        expected, found = {"": expected}, {"": found}
    for key, value in expected.items():
        tables = [
            pd.DataFrame(np.atleast_1d(table) if np.ndim(table) == 0 else table)
            for table in (found[key], value)
        ]
        pd.testing.assert_frame_equal(*tables)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_a_gene_of_the_model_that_repeats_is_named(model, adata, tmp_path):
    wide = with_genes(adata, [*adata.var_names, "TBCE", "3", "TBCE"])
    for name, arguments in (*ENCODED, *DECODED):
        with pytest.raises(ValueError, match=r"1 genes of this model .* several times.*\['3'\]"):
            getattr(model, name)(adata=wide, **arguments)
    for cells in (wide, wide[:, 1:]):
        for fill in (False, True):
            with pytest.raises(ValueError, match=r"several times.*\['3'\].*make_unique"):
                model.prepare_query_anndata(cells, fill_missing=fill)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"several times.*\['3'\]"):
        ContrastiveVI.load(tmp_path / "model", wide)
    wide.var_names_make_unique()
    np.testing.assert_array_equal(
        model.get_latent_representation(wide), model.get_latent_representation()
    )


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_missing_genes_are_filled_where_other_genes_repeat(model, adata):
    wide = with_genes(adata, [*adata.var_names, "TBCE", "TBCE"])[:, 1:].copy()
    filled = model.prepare_query_anndata(wide, fill_missing=True)
    assert list(filled.var_names) == model.genes
    expected = adata.X.toarray()
    expected[:, 0] = 0
    np.testing.assert_array_equal(filled.X.toarray(), expected)
    exact = model.prepare_query_anndata(with_genes(adata, [*adata.var_names, "TBCE", "TBCE"]))
    np.testing.assert_array_equal(exact.X, adata.X.toarray())


def test_a_model_is_loaded_with_cells_of_unknown_condition(model, query, tmp_path):
    model.save(tmp_path / "model")
    loaded = ContrastiveVI.load(tmp_path / "model", query)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )


def test_a_missing_condition_is_still_refused_for_training(adata):
    adata.obs["condition"] = adata.obs["condition"].astype(object)
    adata.obs.iloc[0, adata.obs.columns.get_loc("condition")] = np.nan
    with pytest.raises(ValueError, match="missing"):
        ContrastiveVI(adata, **SMALL).train(max_epochs=1)


PARTS = {
    "default": lambda: {},
    "latent library": lambda: {"use_observed_lib_size": False},
    "sparse": lambda: {"salient_prior": SparseSalient(2)},
    "per condition": lambda: {"salient_prior": PerConditionNormal(2, 2)},
    "mixture": lambda: {"background_prior": MixtureOfGaussians(3, 2)},
    "vamp": lambda: {"background_prior": VampPrior(10, n_components=3, n_covariates=2)},
    "flow": lambda: {"background_prior": NormalizingFlowPrior(3)},
}


@pytest.mark.parametrize("name", PARTS)
def test_every_getter_works_in_float64(adata, name):
    model = ContrastiveVI(adata, **SMALL, **PARTS[name]())
    single = model.get_latent_representation()
    few = model.get_elbo(return_mean=False, seed=0)
    model.module.double()
    double = model.get_latent_representation()
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, single, rtol=1e-4, atol=1e-5)
    assert model.get_elbo(return_mean=False, seed=0).shape == few.shape
    for getter, arguments in [*ENCODED, *DECODED]:
        result = getattr(model, getter)(**arguments)
        tables = result.values() if isinstance(result, dict) else [result]
        for table in tables:
            numbers = pd.DataFrame(np.atleast_1d(np.asarray(table))).select_dtypes("number")
            assert np.isfinite(numbers.to_numpy()).all()
    model.train(max_epochs=1, enable_progress_bar=False)
    assert all(p.dtype == torch.float64 for p in model.module.parameters())
