"""Data that are possible, but probably not what the user means, are warned of once each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.testing import SimulationSettings, simulate

N = np.arange(60)
TREATED = N >= 30
KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}


def cells() -> ad.AnnData:
    made = simulate(SimulationSettings(n_background=30, n_target=30, n_genes=12), seed=0)
    counts = made.X.toarray()
    counts[0] += 1  # no gene is without counts
    made.X = sp.csr_matrix(counts)
    made.obs_names = [f"cell{i}" for i in N]
    return made


def warned_of(adata: ad.AnnData, **keys: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ContrastiveVI.setup_anndata(adata, **(KEYS | keys))
    assert all(w.category is UserWarning and w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


def columns(**values: Any) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        for name, column in values.items():
            adata.obs[name] = column

    return change


def counts(change: Callable[[np.ndarray], None]) -> Callable[[ad.AnnData], None]:
    def changed(adata: ad.AnnData) -> None:
        x = adata.X.toarray()
        change(x)
        adata.X = sp.csr_matrix(x)

    return changed


def condition(name: str, first: int) -> Callable[[ad.AnnData], None]:
    """Cells from `first` on have this condition."""
    return columns(condition=np.where(first <= N, name, np.where(TREATED, "treated", "control")))


LANE = np.array(["a", "b"])[N % 2]
DOUBTFUL: dict[str, tuple[Callable[[ad.AnnData], Any], dict[str, Any], str]] = {
    "a batch without treated cells": (
        columns(lane=np.where(N < 5, "solo", LANE)),
        {"batch_key": "lane"},
        "1 of 3 values of adata.obs['lane'] occur in one condition only: 'solo' (only background",
    ),
    "a level without untreated cells": (
        columns(lane=np.where(N > 54, "solo", LANE)),
        {"categorical_covariate_keys": ["lane"]},
        "1 of 3 values of adata.obs['lane'] occur in one condition only: 'solo' (only target",
    ),
    "a constant batch": (columns(lane="x"), {"batch_key": "lane"}, "adata.obs['lane'] is 'x' in"),
    "a constant number": (
        columns(age=3.0),
        {"continuous_covariate_keys": ["age"]},
        "adata.obs['age'] is '3' in all cells",
    ),
    "a number that follows the condition": (
        columns(age=TREATED + 0.1 * np.sin(N)),
        {"continuous_covariate_keys": ["age"]},
        "adata.obs['age'] follows the condition (correlation 0.99",
    ),
    "genes without counts": (
        counts(lambda x: x[:, :2].fill(0)),
        {},
        "2 of 12 genes have no counts in any cell, e.g. 'gene0', 'gene1'",
    ),
    "counts beyond 2^24": (
        counts(lambda x: np.put(x, 5, 2.0**24 + 2)),
        {},
        "adata.X has values up to 16,777,218",
    ),
    "repeated names": (
        lambda made: setattr(made, "obs_names", ["cell0", "cell0", *made.obs_names[2:]]),
        {},
        "Cell names repeat, e.g. 'cell0'",
    ),
    "a rare treatment": (
        condition("rare", 56),
        {},
        "1 of 2 treatments have fewer than 5 cells: 'rare' (4)",
    ),
    "nan as text": (condition("nan", 50), {}, "adata.obs['condition'] is 'nan' in 10 of 60 cells"),
    "nothing as text": (condition("", 50), {}, "adata.obs['condition'] is '' in 10 of 60 cells"),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_doubtful_data_are_warned_of(name: str) -> None:
    change, keys, begin = DOUBTFUL[name]
    adata = cells()
    adata.var_names = [f"gene{i}" for i in range(12)]
    change(adata)
    (said,) = warned_of(adata, **keys)
    assert said.startswith(begin)


def test_usual_data_are_not_warned_of() -> None:
    adata = cells()
    columns(lane=LANE, age=np.sin(N), site=LANE[::-1])(adata)
    condition("other", 55)(adata)  # five cells
    counts(lambda x: np.put(x, 5, 2.0**24))(adata)
    covariates = {"categorical_covariate_keys": ["site"], "continuous_covariate_keys": ["age"]}
    assert warned_of(adata, batch_key="lane", **covariates) == []


def test_a_background_may_be_called_na() -> None:
    adata = cells()
    adata.obs["drug"] = np.where(TREATED, "a", "NA")
    assert warned_of(adata, condition_key="drug", background="NA") == []


def test_more_latents_than_genes_are_warned_of() -> None:
    adata = cells()
    ContrastiveVI.setup_anndata(adata, **KEYS)
    with pytest.warns(UserWarning, match=r"n_salient_latent=13 is more than .* genes \(12\)") as w:
        ContrastiveVI(adata, n_hidden=4, n_salient_latent=13)
    assert [each.filename for each in w] == [__file__]
    ContrastiveVI(adata, n_hidden=4, n_salient_latent=12)
