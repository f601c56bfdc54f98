"""Counts with fractions, and features that are not genes: what is said at setup, and to whom."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from torch.distributions import constraints

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.data.fractions import look_like_corrected_counts
from pyro_contrastive.report.advice import shell_advice
from pyro_contrastive.testing import SimulationSettings, simulate

KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}
N_CELLS, N_GENES = 120, 300


def counts(depth: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(N_GENES, 0.3))
    library = rng.lognormal(np.log(depth), 0.4, (N_CELLS, 1))
    return rng.poisson(library * shares * rng.gamma(2, 0.5, (N_CELLS, N_GENES))).astype(float)


def soup(x: np.ndarray) -> np.ndarray:
    return x.sum(1, keepdims=True) * x.mean(0) / x.mean(0).sum()


def per_cell(low: float, high: float) -> np.ndarray:
    return np.random.default_rng(1).uniform(low, high, (N_CELLS, 1))


def multimapped(x: np.ndarray, share: float) -> np.ndarray:
    rng = np.random.default_rng(2)
    added = rng.choice([0.5, 1 / 3, 0.25], x.shape) * (rng.random(x.shape) < share)
    return x + added * (x > 0)


def to_depth(x: np.ndarray, depth: float) -> np.ndarray:
    return x / x.sum(1, keepdims=True) * depth


CORRECTED = {
    "one share taken off": lambda x: 0.93 * x,
    "a share of each cell": lambda x: per_cell(0.8, 0.97) * x,
    "ambient profile taken off": lambda x: np.maximum(x - 0.1 * soup(x), 0),
    "some shared reads": lambda x: multimapped(x, 0.05),
    "many shared reads": lambda x: multimapped(x, 0.5),
}
OTHER = {
    "counts": lambda x: x,
    "logs": lambda x: np.log1p(to_depth(x, 1e4)),
    "logs of some genes": lambda x: np.log1p(to_depth(x, 1e4))[:, :100],
    "logs, base 2": lambda x: np.log2(1 + to_depth(x, 1e6))[:, :100],
    "logs of counts": np.log1p,
    "logs of counts, base 2": lambda x: np.log2(1 + x),
    "roots": np.sqrt,
    "roots of deep counts": lambda x: np.sqrt(np.rint(317.3 * x)),
    "Anscombe's roots": lambda x: 2 * np.sqrt(x + 0.375),
    "roots of Freeman and Tukey": lambda x: np.sqrt(x) + np.sqrt(x + 1),
    "one total": lambda x: to_depth(x, 1e6),
    "one total, some genes": lambda x: to_depth(x, 1e6)[:, :100],
    "median total, some genes": lambda x: to_depth(x, np.median(x.sum(1)))[:, :100],
    "shares": lambda x: to_depth(x, 1),
    "centred": lambda x: x - x.mean(0),
    "nothing": np.zeros_like,
}


@pytest.mark.parametrize("depth", [300, 3000])
@pytest.mark.parametrize("kind", CORRECTED)
def test_corrected_counts_are_known(kind: str, depth: float) -> None:
    x = CORRECTED[kind](counts(depth)).astype(np.float32)
    assert look_like_corrected_counts(x)
    assert look_like_corrected_counts(sp.csc_matrix(x))


@pytest.mark.parametrize("depth", [300, 3000])
@pytest.mark.parametrize("kind", OTHER)
def test_other_data_are_not_taken_for_corrected_counts(kind: str, depth: float) -> None:
    x = OTHER[kind](counts(depth)).astype(np.float32)
    assert not look_like_corrected_counts(sp.csr_matrix(x))


def cells() -> ad.AnnData:
    made = simulate(SimulationSettings(n_background=20, n_target=20, n_genes=20), seed=0)
    del made.layers["scale"]
    return made


@pytest.mark.parametrize("stored", ["sparse", "dense"])
@pytest.mark.parametrize("layer", [None, "soupx"])
def test_rounding_is_advised_and_works(layer: str | None, stored: str) -> None:
    adata = cells()
    whole = adata.X.toarray()
    matrix = 0.93 * whole if stored == "dense" else sp.csr_matrix(0.93 * whole)
    if layer is None:
        adata.X = matrix
    else:
        adata.X, adata.layers[layer] = np.log1p(whole), matrix
    with pytest.warns(UserWarning, match="does not hold raw counts.*corrected or expected"):
        ContrastiveVI.setup_anndata(adata, layer=layer, **KEYS)
    with pytest.raises(ValueError, match=r"corrected or expected.*SoupX.*one half") as error:
        ContrastiveVI(adata)
    lines, _, rest = str(error.value).partition("into a layer, ")[2].partition(", and name it: ")
    exec(lines, {"adata": adata, "np": np})
    assert rest.startswith('setup_anndata(adata, layer="rounded").')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ContrastiveVI.setup_anndata(adata, layer="rounded", **KEYS)
    ContrastiveVI(adata, n_hidden=8)
    rounded = adata.layers["rounded"]
    rounded = rounded if isinstance(rounded, np.ndarray) else rounded.toarray()
    np.testing.assert_array_equal(rounded, np.rint(0.93 * whole))
    said = shell_advice(constraints.nonnegative_integer, adata, layer)
    assert "Round them in Python" in said
    assert "--layer rounded_counts" in said  # there is one called "rounded" by now


def test_log_normalised_data_get_the_advice_of_a_gaussian() -> None:
    adata = cells()
    adata.X = sp.csr_matrix(np.log1p(to_depth(adata.X.toarray(), 1e4)))
    with pytest.warns(UserWarning, match="Gaussian") as caught:
        ContrastiveVI.setup_anndata(adata, **KEYS)
    with pytest.raises(ValueError, match=r"likelihood=Gaussian\(\)") as error:
        ContrastiveVI(adata)
    shell = shell_advice(constraints.nonnegative_integer, adata, None)
    assert "--likelihood gaussian" in shell
    for said in (str(caught[0].message), str(error.value), shell):
        assert "ound them" not in said


# Features that are not genes


def with_types(types: list[Any], key: str = "feature_types") -> ad.AnnData:
    adata = cells()
    adata.var_names = [f"g{i}" for i in range(20)]
    adata.var[key] = types
    return adata


def test_guides_among_genes_are_named() -> None:
    adata = with_types(
        ["Gene Expression"] * 14 + ["CRISPR Guide Capture"] * 5 + ["Antibody Capture"]
    )
    with pytest.warns(UserWarning, match="Not all features are genes") as caught:
        ContrastiveVI.setup_anndata(adata, **KEYS)
    (said,) = [str(warning.message) for warning in caught]
    assert "5 of type 'CRISPR Guide Capture' (g14, g15, g16, ...)" in said
    assert "1 of type 'Antibody Capture' (g19)" in said
    assert "reveal the treatment" in said
    scope: dict[str, Any] = {"adata": adata}
    exec(said.rpartition("keep only the genes: ")[2], scope)
    assert scope["adata"].n_vars == 14
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ContrastiveVI.setup_anndata(scope["adata"], **KEYS)


@pytest.mark.parametrize(
    ("key", "types"),
    [
        ("feature_type", ["gene"] * 18 + ["guide"] * 2),
        ("Feature Types", ["gene expression"] * 18 + ["protein"] * 2),
        ("modality", ["rna"] * 18 + ["adt"] * 2),
        ("feature_types-0", ["Gene Expression"] * 18 + ["Custom"] * 2),
        ("kind", ["Gene Expression"] * 18 + ["Multiplexing Capture"] * 2),
        ("feature_type", ["protein_coding"] * 10 + ["lncRNA"] * 8 + ["sgRNA"] * 2),
        ("feature_types", pd.Categorical(["Gene Expression"] * 18 + ["Peaks"] * 2)),
        ("feature_types", ["Peaks"] * 18 + ["CRISPR Guide Capture"] * 2),
        ("feature_types", [None] * 9 + ["Gene Expression"] * 9 + ["Antibody Capture"] * 2),
    ],
)
def test_types_of_features_by_other_names(key: str, types: Any) -> None:
    adata = with_types(types, key)
    with pytest.warns(UserWarning, match=r"2 of type .* \(g18, g19\)") as caught:
        ContrastiveVI.setup_anndata(adata, **KEYS)
    scope: dict[str, Any] = {"adata": adata}
    exec(str(caught[0].message).rpartition("keep only the genes: ")[2], scope)
    assert not {"g18", "g19"} & set(scope["adata"].var_names)


@pytest.mark.parametrize(
    ("key", "types"),
    [
        ("feature_types", ["Gene Expression"] * 20),
        ("feature_types", ["Peaks"] * 20),
        ("feature_type", ["protein_coding"] * 10 + ["lncRNA"] * 6 + ["processed_pseudogene"] * 4),
        ("feature_types", [None] * 6 + ["Gene Expression"] * 14),
        ("chromosome", ["1", "2"] * 10),
        ("highly_variable", [True, False] * 10),
        ("feature_types", pd.Categorical(["Gene Expression"] * 20, ["Gene Expression", "Peaks"])),
    ],
)
def test_genes_alone_are_not_warned_of(key: str, types: Any) -> None:
    ContrastiveVI.setup_anndata(with_types(types, key), **KEYS)
