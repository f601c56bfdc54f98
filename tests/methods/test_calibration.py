"""Simulation-based calibration, as users call it."""

from __future__ import annotations

import numpy as np
import pytest
from small_model import make, small_adata

from pyro_contrastive import ContrastiveVI, Gaussian


@pytest.fixture(scope="module")
def model() -> ContrastiveVI:
    return make(small_adata())


def quantities(model: ContrastiveVI, **given) -> list[str]:
    found = model.simulation_based_calibration(n_simulations=40, n_draws=9, seed=0, **given)
    assert list(found.table.index) == list(found.ranks)
    latents = ["z1", "z2", "z3", "s1", "s2", "log_likelihood"]
    assert list(found.ranks)[:6] == latents
    return list(found.ranks)[6:]


def test_of_the_genes_asked_for_expression_and_effect_are_ranked(model) -> None:
    asked = ["gene9", "gene2"]
    of_genes = [f"{what} gene{k}" for what in ("expression of", "effect on") for k in (2, 9)]
    assert quantities(model, gene_list=asked) == of_genes
    assert quantities(model, gene_list=asked, method="refined") == of_genes
    assert quantities(model, gene_list=[]) == []


def test_by_default_genes_of_the_highest_mean_are_ranked(model) -> None:
    means = np.asarray(model.adata.X.mean(0)).ravel()
    highest = {f"gene{k}" for k in np.argsort(-means)[:5]}
    cells = np.arange(26)
    found = quantities(model, indices=np.concatenate([cells, cells]))
    named = {name.rsplit(" ", 1)[1] for name in found}
    assert len(found) == 10
    assert len(named & highest) >= 4  # of the cells that were drawn, not of all


def test_without_normalised_expression_latents_are_ranked_alone() -> None:
    with pytest.warns(UserWarning, match="as raw counts are"):
        model = make(small_adata(), likelihood=Gaussian(log1p=False))
    assert quantities(model) == []
    with pytest.raises(ValueError, match="normalised expression has no meaning"):
        quantities(model, gene_list=["gene1"])


def test_genes_that_do_not_exist_or_are_no_list_are_refused(model) -> None:
    with pytest.raises(ValueError, match=r"gene_list: 1 are not genes .* \['nothing'\]"):
        quantities(model, gene_list=["nothing", "gene1"])
    with pytest.raises(TypeError, match="gene_list must be a list of genes"):
        quantities(model, gene_list="gene1")
