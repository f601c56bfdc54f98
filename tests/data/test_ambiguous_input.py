"""Input that could be understood in two ways is refused, or understood in one that is said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.analysis.leakage import probe
from pyro_contrastive.analysis.separation import score_latents
from pyro_contrastive.testing import SimulationSettings, simulate


def make(**keys):
    adata = simulate(SimulationSettings(n_background=20, n_target=20, n_genes=10), seed=0)
    adata.obs_names = [f"cell{i}" for i in range(40)]
    for key, values in keys.items():
        adata.obs[key] = values
    return adata


def fitted(adata, **keys) -> ContrastiveVI:
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control", **keys)
    model = ContrastiveVI(adata, n_hidden=8, n_background_latent=3, n_salient_latent=2)
    model.train(max_epochs=1, enable_progress_bar=False, seed=0)
    return model


@pytest.fixture(scope="module")
def model() -> ContrastiveVI:
    return fitted(make(dose=np.linspace(0, 1, 40)), continuous_covariate_keys=["dose"])


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_zeros_and_ones_are_no_positions(model, kind):
    told = (np.arange(40) >= 20).astype(kind)
    with pytest.raises(ValueError, match=r"For a mask give truth values: indices\.astype\(bool\)"):
        model.get_latent_representation(indices=told)
    with pytest.raises(ValueError, match=r"idx1\.astype\(bool\)"):
        model.differential_expression(idx1=pd.Series(told, index=model.adata.obs_names))
    assert model.get_latent_representation(indices=[0, 1]).shape == (2, 2)  # the first two cells


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.ma.array([1, 2, 3], mask=[0, 1, 0]), r"indices\.compressed\(\)"),
        ([[1, 2], [3]], "must be one list of integers"),
        (["cell1", "cell2"], r"adata\.obs_names\.isin\(names\)"),
    ],
)
def test_other_indices_are_refused_with_an_explanation(model, indices, message):
    with pytest.raises(ValueError, match=message):
        model.get_latent_representation(indices=indices)


def test_genes_may_come_in_any_collection(model):
    genes = model.genes[3], model.genes[1]
    expected = model.get_normalized_expression(gene_list=list(genes), seed=0)["salient"]
    assert expected.columns.tolist() == [model.genes[1], model.genes[3]]
    for given in (set(genes), dict.fromkeys(genes), (gene for gene in genes)):
        found = model.get_normalized_expression(gene_list=given, seed=0)["salient"]
        pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("size", [0, -1.0, np.nan, np.inf, None, [1.0]])
def test_a_library_size_is_a_positive_number(model, size):
    with pytest.raises(ValueError, match="library_size must be a positive number or 'latent'"):
        model.get_normalized_expression(library_size=size)


@pytest.mark.parametrize("value", [np.nan, np.inf, "low", None, [0.1]])
def test_a_covariate_to_decode_under_is_a_finite_number(model, value):
    with pytest.raises(ValueError, match="'dose' must be a finite number"):
        model.get_normalized_expression(transform_covariates={"dose": value})


def test_a_query_without_any_known_gene_is_refused(model):
    query = model.adata.copy()
    query.var_names = [f"ENSG{i}" for i in range(10)]
    with pytest.raises(ValueError, match=r"none of the model's 10 genes: .*ENSG0"):
        model.prepare_query_anndata(query, fill_missing=True)
    query.var_names = [*model.genes[:2], *query.var_names[2:]]
    with pytest.warns(UserWarning, match="8 of the model's 10 genes are missing"):
        filled = model.prepare_query_anndata(query, fill_missing=True)
    assert filled.var_names.tolist() == model.genes


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([0, 1], [0.0, 1.0]),
        ([0.0, 1.0], [0, 1]),
        ([0, 1], [False, True]),
        (pd.to_datetime(["2020-01-01 00:00", "2020-01-02 12:00"]), None),
    ],
)
def test_batches_are_known_again_whatever_their_type(before, after):
    adata = make(lane=np.resize(np.asarray(before), 40))
    model = fitted(adata, batch_key="lane")
    expected = model.get_normalized_expression(seed=0)["salient"]
    query = adata.copy()
    if after is not None:
        query.obs["lane"] = np.resize(np.asarray(after), 40)
    pd.testing.assert_frame_equal(
        model.get_normalized_expression(query, seed=0)["salient"], expected
    )
    first = query[::2].copy()  # of dates that are all midnight pandas leaves out the time
    model.get_normalized_expression(first, seed=0)


def test_text_is_not_read_as_a_number():
    adata = make(lane=np.resize(["1", "2"], 40))
    model = fitted(adata, batch_key="lane")
    query = adata.copy()
    query.obs["lane"] = np.resize(["01", "02"], 40)
    with pytest.raises(ValueError, match="categories the model was not set up with"):
        model.get_normalized_expression(query)


def test_cells_of_the_same_names_and_other_counts_did_not_train(tmp_path):
    adata = make()
    adata.obs_names = [str(i) for i in range(40)]
    model = fitted(adata)
    model.save(tmp_path / "model")
    same = ContrastiveVI.load(tmp_path / "model", adata=adata)
    np.testing.assert_array_equal(same.train_indices, model.train_indices)
    other = adata[::-1].copy()
    other.obs_names = adata.obs_names
    assert ContrastiveVI.load(tmp_path / "model", adata=other).train_indices is None


def test_latents_in_different_orders_are_refused(model):
    names = model.adata.obs_names
    z, s = (
        pd.DataFrame(model.get_latent_representation(representation_kind=kind), index=names)
        for kind in ("background", "salient")
    )
    condition = model.adata.obs["condition"]
    scores = score_latents(z, s, condition, background_category="control", n_neighbors=5)
    assert len(scores) == 4
    with pytest.raises(ValueError, match=r"salient\.loc\[background\.index\]"):
        score_latents(z, s[::-1], condition, background_category="control", n_neighbors=5)


def test_missing_labels_are_refused_everywhere_alike(model):
    types = np.resize(np.array(["A", "B"], dtype=object), 40)
    types[:5] = np.nan
    query = model.adata.copy()
    query.obs["type"] = pd.Categorical(types)
    with pytest.raises(ValueError, match=r"missing \(NaN\) in 5 cells"):
        model.leakage(query, labels_keys="type", n_permutations=2)
    with pytest.raises(ValueError, match=r"missing \(NaN\) in 5 cells"):
        model.diagnose(query, labels_key="type", n_khat_cells=5, n_cells=40)
    with pytest.raises(ValueError, match="labels are missing for 5 cells"):
        probe(np.zeros((40, 2)), types)


def test_a_missing_value_is_no_level(model):
    with pytest.raises(ValueError, match="is not a condition of this model"):
        model.get_counterfactual_expression(pd.NA)
