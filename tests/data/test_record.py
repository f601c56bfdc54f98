"""The record of the set-up in uns may be damaged, or of a later version."""

from __future__ import annotations

import json
from typing import Any

import anndata as ad
import numpy as np
import pytest
from small_model import SMALL, small_adata

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.data.setup import UNS_KEY, Setup


@pytest.fixture
def adata() -> ad.AnnData:
    made = small_adata()
    ContrastiveVI.setup_anndata(
        made, batch_key="lane", condition_key="condition", background="control"
    )
    return made


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ({"genes": 3}, "'genes' is not a list of names"),
        ({"genes": []}, "it names no genes"),
        ({"batch_key": "nope"}, "it has no categories of 'nope'"),
        ({"batch_key": ["lane"]}, "'batch_key' is not a name"),
        ({"layer": {"a": 1}}, "'layer' is not a name"),
        ({"categorical_covariate_keys": None}, "'categorical_covariate_keys' is not a list"),
        ({"categories": {"condition": [1, 2]}}, "'categories' is not a table of lists of names"),
        ({"background": "treated"}, "its background, 'treated', is not the first category"),
        ({"size_factor_unit": float("nan")}, "'size_factor_unit' is not a positive number"),
    ],
)
def test_damaged_entries(adata, entries: dict[str, Any], fault: str) -> None:
    adata.uns[UNS_KEY] = json.dumps(json.loads(adata.uns[UNS_KEY]) | entries)
    with pytest.raises(ValueError, match=r"is damaged.*Call ContrastiveVI.setup_anndata") as error:
        ContrastiveVI(adata, **SMALL)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ("nope", "it is not JSON"),
        ("[1]", "it holds a list, not a table"),
        ("[" * 100_000, "it is not JSON"),
        ({}, "it is a dict, not text"),
        (np.arange(3), "it is a ndarray, not text"),
        ("{}", "it has no 'genes'"),
    ],
)
def test_damaged_records(adata, record: Any, fault: str) -> None:
    adata.uns[UNS_KEY] = record
    with pytest.raises(ValueError, match=fault):
        ContrastiveVI(adata, **SMALL)


def test_a_record_of_a_later_version(adata) -> None:
    adata.uns[UNS_KEY] = json.dumps(json.loads(adata.uns[UNS_KEY]) | {"protein_layer": "x"})
    with pytest.raises(ValueError, match=r"'protein_layer'.*is of a later version"):
        ContrastiveVI(adata, **SMALL)


def test_a_record_of_an_earlier_version_and_one_from_a_file(adata, tmp_path) -> None:
    expected = Setup.of(adata)
    record = json.loads(adata.uns[UNS_KEY])
    del record["sample_key"], record["size_factor_unit"]  # which earlier versions did not write
    adata.uns[UNS_KEY] = json.dumps(record)
    assert Setup.of(adata) == expected
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert Setup.of(ad.read_h5ad(tmp_path / "cells.h5ad")) == expected
