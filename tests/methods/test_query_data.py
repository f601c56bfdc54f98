"""Data other than the model's own: genes in another order, missing genes, other cells."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from small_model import GENES, SMALL, make

from pyro_contrastive import ContrastiveVI


def test_query_data_with_genes_in_another_order_or_among_others(adata) -> None:
    model = make(adata)
    expected = model.get_latent_representation()
    turned = model.get_latent_representation(adata[:, ::-1].copy())
    assert turned == pytest.approx(expected, abs=1e-5)
    fewer = make(adata[:, [9, 2, 5, 0, 1, 3, 4]].copy())
    assert fewer.genes[:3] == ["gene9", "gene2", "gene5"]
    assert fewer.get_latent_representation(adata).shape == (26, 2)


@pytest.mark.parametrize("layer", [None, "counts"])
def test_query_data_without_some_genes(adata, layer) -> None:
    adata.layers["counts"] = adata.X.copy()
    ContrastiveVI.setup_anndata(adata, layer=layer, condition_key="condition", background="control")
    model = ContrastiveVI(adata, **SMALL)
    some = adata[:, [i for i in range(GENES) if i not in {3, 8}]].copy()
    with pytest.raises(ValueError, match=r"lacks 2.*\['gene3', 'gene8'\]"):
        model.get_latent_representation(some)
    with pytest.raises(ValueError, match="fill_missing"):
        model.prepare_query_anndata(some)
    zeroed = adata.copy()
    kept = sp.diags(np.isin(np.arange(GENES), [3, 8], invert=True).astype(np.float32))
    zeroed.X = zeroed.layers["counts"] = (adata.X @ kept).tocsr()
    filled = model.prepare_query_anndata(some, fill_missing=True)
    assert filled.var_names.tolist() == model.genes
    assert np.array_equal(
        model.get_latent_representation(filled), model.get_latent_representation(zeroed)
    )


def test_prepare_query_anndata_of_the_class_says_whose_method_it_is(adata) -> None:
    with pytest.raises(TypeError, match=r"model.prepare_query_anndata\(adata\)"):
        ContrastiveVI.prepare_query_anndata(adata, "folder")


def test_other_cells_of_the_same_name_are_not_taken_for_those_trained_on(adata) -> None:
    model = make(adata, condition_key=None)
    model.train(np.arange(12), np.arange(12, 26), max_epochs=1, enable_progress_bar=False)
    other = adata[::-1].copy()
    other.obs_names = adata.obs_names
    with pytest.warns(UserWarning, match="26 of these cells were neither"):
        both = model.get_normalized_expression(other, seed=0)
    with pytest.raises(ValueError, match="26 of these cells were neither background nor target"):
        model.differential_expression(other, idx1=np.arange(12), seed=0)
    unequal = ~np.isclose(both["background"], both["salient"], atol=1e-7).all(1)
    assert unequal.all()  # not known: decoded with s, as in scvi-tools
