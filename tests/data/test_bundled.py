"""The bundled data are what their docstring says."""

from __future__ import annotations

from importlib.resources import files

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from pyro_contrastive.data.bundled import load_kang

RESPONSE_GENES = ("ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "CXCL10")


@pytest.fixture(scope="module")
def kang() -> ad.AnnData:
    return load_kang()


def test_shape_and_labels_are_as_documented(kang: ad.AnnData) -> None:
    assert kang.shape == (3474, 2000)
    assert kang.obs["condition"].value_counts().to_dict() == {"control": 1621, "stimulated": 1853}
    assert list(kang.obs) == ["condition", "cell_type", "cell_type_coarse"]
    assert kang.obs["cell_type"].nunique() == 13
    assert kang.obs["cell_type_coarse"].nunique() == 9
    assert not kang.obs.isna().any(axis=None)


def test_counts_are_raw_integers_in_csr_float32(kang: ad.AnnData) -> None:
    assert isinstance(kang.X, sparse.csr_matrix)
    assert kang.X.dtype == np.float32
    assert (kang.X.data > 0).all()
    assert (kang.X.data % 1 == 0).all()
    assert (kang.X.sum(axis=1) > 0).all()


def test_names_are_unique_and_response_genes_are_there(kang: ad.AnnData) -> None:
    assert kang.obs_names.is_unique
    assert kang.var_names.is_unique
    assert set(RESPONSE_GENES) <= set(kang.var_names)


def test_interferon_genes_rise_under_interferon(kang: ad.AnnData) -> None:
    treated = (kang.obs["condition"] == "stimulated").to_numpy()
    counts = kang[:, list(RESPONSE_GENES)].X.toarray()
    assert (counts[treated].mean(axis=0) > 10 * counts[~treated].mean(axis=0)).all()


def test_each_cell_type_is_in_both_conditions(kang: ad.AnnData) -> None:
    pairs = kang.obs.groupby(["cell_type_coarse", "condition"], observed=False).size()
    assert pairs.min() > 0


def test_provenance_names_paper_accession_and_repositories(kang: ad.AnnData) -> None:
    source = kang.uns["source"]
    for name in ("10.1038/nbt.4042", "GSE96583", "chthub/rDeepmaps", "hjames1/seuratTools"):
        assert name in source


def test_each_call_gives_a_copy_of_its_own() -> None:
    first = load_kang()
    first.X.data[:] = 0
    assert load_kang().X.data.min() > 0


def test_file_is_small_enough_to_ship() -> None:
    assert len((files("pyro_contrastive") / "data" / "kang_ifnb.h5ad").read_bytes()) < 2_500_000
