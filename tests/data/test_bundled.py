"""The bundled data are what their docstring says."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from pyro_contrastive.data.bundled import load_kang

# Genes that are known to mark these types, and of which the labelling is not told.
OTHER_MARKERS = {
    "B": ("CD19", "BANK1"),
    "CD8 T": ("LAG3",),
    "DC": ("FSCN1",),
    "Eryth": ("ALAS2",),
    "Mk": ("NRGN", "TREML1"),
    "Mono": ("FCN1", "VCAN"),
    "NK": ("KLRC1", "KLRB1"),
    "T activated": ("HSPA6", "HSPA1B"),
}
MAKE_SUBSET = Path(__file__).parents[2] / "benchmarks" / "make_kang_subset.py"
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


@pytest.fixture(scope="module")
def script():
    spec = spec_from_file_location("make_kang_subset", MAKE_SUBSET)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_labels_are_those_that_the_script_makes_from_the_counts(kang: ad.AnnData, script) -> None:
    made = script.labels_of(kang)
    for key in ("cell_type", "cell_type_coarse"):
        assert (made[key].astype(str) == kang.obs[key].astype(str)).all()


def test_types_express_markers_of_which_the_labelling_was_not_told(kang, script) -> None:
    told = {gene for markers in script.MARKERS.values() for gene in markers}
    share = kang.to_df().div(np.asarray(kang.X.sum(axis=1)).ravel(), axis=0)
    mean = share.groupby(kang.obs["cell_type_coarse"], observed=True).mean()
    for name, markers in OTHER_MARKERS.items():
        for gene in markers:
            assert gene not in told
            assert mean.loc[name, gene] > 2 * mean[gene].drop(name).max(), (name, gene)


def test_labels_do_not_follow_the_condition(kang: ad.AnnData) -> None:
    # Each donor's blood was split before one half was treated, so that a type with enough cells has
    # about the same share of both conditions.
    share = kang.obs.groupby("cell_type_coarse", observed=True)["condition"].value_counts(
        normalize=True
    )
    assert share.loc[["B", "Mono", "NK", "CD4 T", "CD8 T", "DC"]].between(0.37, 0.63).all()


def test_no_label_comes_from_a_file_without_a_licence(kang: ad.AnnData) -> None:
    source = kang.uns["source"]
    assert "royfrancis" not in source
    assert "made for this package" in source
    notice = (files("pyro_contrastive") / "data" / "kang_ifnb_NOTICE.txt").read_text()
    for holder in ("Copyright (c) 2021 Cankun Wang", "Copyright (c) 2025 James"):
        assert holder in notice
    assert "Permission is hereby granted, free of charge" in notice


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
