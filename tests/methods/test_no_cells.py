"""Of no cells, a result per cell is empty, and a result about all cells together is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_model import GENES, make, small_adata

from pyro_contrastive import ContrastiveVI

NOTHING = [[], np.array([]), np.zeros(26, dtype=bool), pd.Series([], dtype=int)]


@pytest.fixture(scope="module")
def model() -> ContrastiveVI:
    return make(small_adata())


def shapes(result: Any) -> set[tuple[int, ...]]:
    found = result.values() if isinstance(result, dict) else [result]
    return {np.shape(each) for each in found}


TABLE, DRAWS = (0, GENES), (3, 0, GENES)
PER_CELL: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("get_latent_representation", {}, (0, 2)),
    ("get_latent_representation", {"representation_kind": "background"}, (0, 3)),
    ("get_latent_library_size", {}, (0, 1)),
    ("get_normalized_expression", {}, TABLE),
    ("get_normalized_expression", {"n_samples": 3}, TABLE),
    ("get_normalized_expression", {"n_samples": 3, "return_mean": False}, DRAWS),
    ("get_normalized_expression", {"gene_list": ["gene1"]}, (0, 1)),
    ("get_salient_normalized_expression", {"n_samples": 3, "return_mean": False}, DRAWS),
    ("get_specific_normalized_expression", {"expression_type": "background"}, TABLE),
    ("get_counterfactual_expression", {"condition": "treated"}, TABLE),
    ("get_counterfactual_expression", {"condition": "control", "n_samples": 3}, TABLE),
    ("get_treatment_effect", {"n_samples": 40}, TABLE),
    ("get_elbo", {"return_mean": False}, (0,)),
    ("get_reconstruction_error", {"return_mean": False}, (0,)),
    ("get_marginal_ll", {"return_mean": False, "n_mc_samples": 3}, (0,)),
    ("posterior_predictive_sample", {"n_samples": 3}, DRAWS),
    ("prior_predictive_sample", {"n_samples": 3}, DRAWS),
    ("pareto_k", {"n_samples": 25}, (0, 4)),
]


@pytest.mark.parametrize(("method", "given", "shape"), PER_CELL)
def test_results_per_cell_are_empty(model, method, given, shape) -> None:
    for indices in NOTHING:
        assert shapes(getattr(model, method)(indices=indices, **given)) == {shape}
    some = getattr(model, method)(indices=[0, 1], **given)
    assert shapes(some) == {tuple(2 if n == 0 else n for n in shape)}


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("get_elbo", {}),
        ("get_reconstruction_error", {}),
        ("get_marginal_ll", {"n_mc_samples": 3}),
        ("get_group_effects", {}),
        ("score_latents", {}),
    ],
)
def test_results_about_all_cells_are_refused(model, method, given) -> None:
    for indices in NOTHING:
        with pytest.raises(ValueError, match="indices selects no cells"):
            getattr(model, method)(indices=indices, **given)


def test_no_genes(model) -> None:
    assert shapes(model.get_normalized_expression(gene_list=[])) == {(26, 0)}
    assert model.posterior_predictive_sample(gene_list=[]).shape == (1, 26, 0)
