"""Counts that would lose something on the way into the model are refused, with what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_model import SMALL, make, small_adata

from pyro_contrastive import ContrastiveVI

KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}


class Computed:
    """An array that is computed when it is asked for, as those of dask are."""

    shape, ndim, dtype = (26, 15), 2, np.dtype("float32")


Computed.__module__ = "dask.array.core"


@pytest.mark.parametrize(
    ("make_layer", "message"),
    [
        (lambda x: x.astype(complex), r"must hold numbers, not values of type complex128"),
        (lambda x: x.astype(str), "must hold numbers, not values of type <U"),
        (lambda x: x.astype(object), r"\.astype\('float32'\)"),
        (lambda x: x.astype("datetime64[s]"), "must hold numbers"),
        (lambda x: np.stack([x, x], axis=2), r"has shape \(26, 15, 2\); counts have two axes"),
        (
            lambda x: np.ma.masked_array(x, mask=x > 2),
            r"masked array, and .*filled\(0\)",
        ),
    ],
)
def test_kinds_that_are_refused(make_layer, message) -> None:
    adata = small_adata()
    adata.layers["counts"] = make_layer(adata.X.toarray())
    with pytest.raises(ValueError, match=message) as error:
        ContrastiveVI.setup_anndata(adata, layer="counts", **KEYS)
    assert "adata.layers['counts']" in str(error.value)


def test_counts_that_are_computed_later() -> None:
    adata = small_adata()
    adata._X = Computed()
    with pytest.raises(ValueError, match=r"a Computed of dask.*adata\.X = adata\.X\.compute\(\)"):
        ContrastiveVI.setup_anndata(adata, **KEYS)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x > 0,
        lambda x: x.astype(np.int8),
        lambda x: x.astype(np.longdouble),
        lambda x: x.astype(">f4"),
        np.ma.masked_array,
        lambda x: pd.DataFrame(x, [f"cell{i}" for i in range(26)]),
    ],
)
def test_kinds_that_are_read(change) -> None:
    adata = small_adata()
    counts = np.minimum(adata.X.toarray(), 100)
    adata.layers["counts"] = change(counts)
    ContrastiveVI.setup_anndata(adata, layer="counts", **KEYS)
    found = ContrastiveVI(adata, **SMALL)._data(None).rows()
    expected = np.asarray(change(counts), dtype=np.float32)
    np.testing.assert_array_equal(found.toarray() if hasattr(found, "toarray") else found, expected)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([["a"]] * 26, "holds values of type list"),
        ([{"a": 1}] * 26, "holds values of type dict"),
    ],
)
def test_columns_of_lists(column, message) -> None:
    adata = small_adata()
    adata.obs["odd"] = pd.Series(column, adata.obs_names, dtype=object)
    with pytest.raises(ValueError, match=message):
        ContrastiveVI.setup_anndata(adata, condition_key="odd", background="a")


@pytest.mark.parametrize(
    "values",
    [
        np.arange(26) + 1j,
        pd.date_range("2024-01-01", periods=26),
        pd.timedelta_range("1D", periods=26),
    ],
)
def test_columns_that_are_no_numbers(values) -> None:
    adata = small_adata()
    adata.obs["age"] = values
    for key in ({"size_factor_key": "age"}, {"continuous_covariate_keys": ["age"]}):
        with pytest.raises(ValueError, match=r"adata\.obs\['age'\] must hold real numbers"):
            ContrastiveVI.setup_anndata(adata, **KEYS, **key)


def test_anything_but_an_anndata_is_named() -> None:
    model = make(small_adata())
    for given in (pd.DataFrame({"a": [1]}), "cells.h5ad", 3):
        for ask in (model.get_latent_representation, model.prepare_query_anndata):
            with pytest.raises(TypeError, match=r"An AnnData .* is needed"):
                ask(given)


@pytest.mark.parametrize(
    ("genes", "error", "message"),
    [
        (["gene1", "gene1"], ValueError, "names 1 genes more than once, e.g. \\['gene1'\\]"),
        (["gen1"], ValueError, "Do you mean 'gene1'"),
        ([["gene1"]], TypeError, "it holds \\['gene1'\\]"),
        (3, TypeError, "gene_list must be a list of names of genes, .* not 3"),
        (pd.DataFrame({"gene1": [1]}), TypeError, "not a DataFrame"),
    ],
)
def test_lists_of_genes(genes, error, message) -> None:
    with pytest.raises(error, match=message):
        make(small_adata()).get_normalized_expression(gene_list=genes)


@pytest.mark.parametrize("batch", [{"a": 1}, pd.DataFrame({"a": [1]}), [["a"]]])
def test_a_table_is_no_batch(batch) -> None:
    with pytest.raises(ValueError, match=r"transform_batch: .* are not batches of this model"):
        make(small_adata()).get_normalized_expression(transform_batch=batch)


@pytest.mark.parametrize("preset", ["seperated", 3, None, ["separated"]])
def test_presets(preset) -> None:
    adata = small_adata()
    ContrastiveVI.setup_anndata(adata, **KEYS)
    hint = "Do you mean 'separated'" if preset == "seperated" else "There is no preset"
    with pytest.raises(ValueError, match=hint):
        ContrastiveVI.from_preset(adata, preset)
