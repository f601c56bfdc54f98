"""Names of columns that are no names: what was given is said, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.data import Setup
from pyro_contrastive.testing import SimulationSettings, simulate

KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}


@pytest.fixture
def adata() -> ad.AnnData:
    made = simulate(SimulationSettings(n_background=15, n_target=15, n_genes=8), seed=0)
    made.obs["chip"] = np.resize(["a", "b"], 30)
    made.obs["lane"] = np.resize(["x", "x", "y", "y"], 30)
    made.layers["counts"] = made.X.copy()
    return made


SINGLE = ("batch_key", "labels_key", "condition_key", "size_factor_key", "layer")
GIVEN: dict[str, tuple[Callable[[ad.AnnData], Any], str]] = {
    "list": (lambda a: ["chip", "lane"], r"the list \['chip', 'lane'\]"),
    "list of one": (lambda a: ["chip"], r"the list \['chip'\]. Give its name: {0}='chip'"),
    "tuple": (lambda a: ("chip", "lane"), r"the tuple \('chip', 'lane'\)"),
    "index": (lambda a: pd.Index(["chip", "lane"]), r"an Index of shape \(2,\)"),
    "column": (lambda a: a.obs["chip"], r"a Series, the column itself \('chip'\). Give its name"),
    "columns": (lambda a: a.obs[["chip", "lane"]], r"a DataFrame, .*\['chip', 'lane'\]"),
    "values": (lambda a: a.obs["chip"].to_numpy(), r"a[n]? .* of shape \(30,\)"),
    "matrix": (lambda a: a.X, r"a csr_\w+ of shape \(30, 8\)"),
    "number": (lambda a: 3, r"the int 3\."),
    "dict": (lambda a: {"chip": 1}, r"the dict"),
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("argument", SINGLE)
def test_what_is_no_name_is_named(adata: ad.AnnData, argument: str, given: str) -> None:
    make, message = GIVEN[given]
    with pytest.raises(TypeError, match=rf"{argument} must be.*it is {message.format(argument)}"):
        ContrastiveVI.setup_anndata(adata, **(KEYS | {argument: make(adata)}))
    assert "_pyro_contrastive" not in adata.uns


@pytest.mark.parametrize("given", ["list", "tuple", "index", "columns"])
def test_several_batch_columns_are_joined_by_the_line_that_is_given(adata, given) -> None:
    with pytest.raises(TypeError, match="Join the columns into one") as error:
        ContrastiveVI.setup_anndata(adata, batch_key=GIVEN[given][0](adata))
    line, _, named = str(error.value).partition("into one, ")[2].partition(", and name that: ")
    exec(line, {"adata": adata})
    assert named == "batch_key='chip_lane'."
    ContrastiveVI.setup_anndata(adata, batch_key="chip_lane")
    assert Setup.of(adata).categories["chip_lane"] == ["a_x", "a_y", "b_x", "b_y"]


@pytest.mark.parametrize("argument", ["size_factor_key", "layer"])
def test_what_cannot_be_joined_is_chosen_from(adata, argument) -> None:
    with pytest.raises(TypeError, match=rf"Name one of them: {argument}='chip'"):
        ContrastiveVI.setup_anndata(adata, **{argument: ["chip", "lane"]})


def test_a_matrix_goes_into_a_layer(adata: ad.AnnData) -> None:
    with pytest.raises(TypeError, match=r'adata\.layers\["counts"\] = counts.*layer="counts"'):
        ContrastiveVI.setup_anndata(adata, layer=adata.X)


def test_values_are_made_a_column(adata: ad.AnnData) -> None:
    unnamed = adata.obs["chip"].rename(None)
    for values in (unnamed, unnamed.to_numpy()):
        with pytest.raises(TypeError, match=r"adata\.obs\['batch'\] = values.*batch_key='batch'"):
            ContrastiveVI.setup_anndata(adata, batch_key=values)


@pytest.mark.parametrize("argument", ["categorical_covariate_keys", "continuous_covariate_keys"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("chip", r"be a list of columns, not the string 'chip': \['chip'\]"),
        (lambda a: a.obs["chip"], r"it is a Series, .* Give the names: \w+=\['chip'\]"),
        (lambda a: a.obs[["chip", "lane"]], r"it is a DataFrame.*=\['chip', 'lane'\]"),
        (lambda a: [["chip", "lane"]], r"it holds the list \['chip', 'lane'\]"),
        (lambda a: [a.obs["chip"]], r"it holds a Series, the column itself \('chip'\)"),
        (lambda a: ["chip", 3], r"it holds the int 3\. .*columns\.astype\(str\)"),
        (lambda a: {"chip": 1}, "it is the dict"),
        (lambda a: 3, "it is the int 3"),
    ],
)
def test_lists_of_names(adata, argument, given, message) -> None:
    keys = given(adata) if callable(given) else given
    with pytest.raises(TypeError, match=rf"{argument} must.*{message}"):
        ContrastiveVI.setup_anndata(adata, **{argument: keys})


def test_names_in_any_kind_of_list(adata: ad.AnnData) -> None:
    for keys in (("chip",), pd.Index(["chip"]), np.array(["chip"]), ["chip"], []):
        ContrastiveVI.setup_anndata(adata, categorical_covariate_keys=keys)
        setup = Setup.of(adata)
        assert setup.categorical_covariate_keys == tuple(map(str, keys))


METHODS: dict[str, tuple[str, Callable[[ContrastiveVI, Any], Any]]] = {
    "differential_expression": (
        "groupby",
        lambda m, key: m.differential_expression(groupby=key, silent=True),
    ),
    "score_latents": ("labels_key", lambda m, key: m.score_latents(labels_key=key)),
    "diagnose": ("labels_key", lambda m, key: m.diagnose(labels_key=key, silent=True)),
}
SEVERAL: dict[str, tuple[str, Callable[[ContrastiveVI, Any], Any]]] = {
    "leakage": ("labels_keys", lambda m, key: m.leakage(labels_keys=key, silent=True)),
    "posterior_predictive_check": (
        "groupby",
        lambda m, key: m.posterior_predictive_check(groupby=key, silent=True),
    ),
}


@pytest.fixture
def model(adata: ad.AnnData) -> ContrastiveVI:
    ContrastiveVI.setup_anndata(adata, **KEYS)
    return ContrastiveVI(adata, n_hidden=8, n_background_latent=2, n_salient_latent=2)


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_take_one_column(model: ContrastiveVI, method: str) -> None:
    argument, call = METHODS[method]
    assert model.adata is not None
    for given in (["chip", "lane"], model.adata.obs["chip"], model.adata.obs[["chip"]], 3):
        with pytest.raises(TypeError, match=f"{argument} must be the name of a column"):
            call(model, given)
    with pytest.raises(KeyError, match=r"'type'.*'chip'"):
        call(model, "type")


@pytest.mark.parametrize("method", SEVERAL)
def test_methods_that_take_several_columns(model: ContrastiveVI, method: str) -> None:
    argument, call = SEVERAL[method]
    assert model.adata is not None
    for given in ([["chip"]], model.adata.obs["chip"], model.adata.obs[["chip"]], 3):
        with pytest.raises(TypeError, match=f"{argument} must be a list of names of columns"):
            call(model, given)
    with pytest.raises(KeyError, match=r"'type'.*'chip'"):
        call(model, ["type"])


def test_a_name_that_is_nearly_one(adata: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"Do you mean 'chip'\?"):
        ContrastiveVI.setup_anndata(adata, batch_key="Chip")


def test_two_columns_of_one_name(adata: ad.AnnData) -> None:
    adata.obs.insert(0, "chip", adata.obs["lane"], allow_duplicates=True)
    with pytest.raises(ValueError, match=r"2 columns of adata\.obs are called 'chip'; rename"):
        ContrastiveVI.setup_anndata(adata, batch_key="chip")
