"""Counterfactuals by the name of a condition, and treatment effects with their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from small_model import GENES, make

from pyro_contrastive import ContrastiveVI, PerConditionNormal
from pyro_contrastive.testing import SimulationSettings, simulate


def test_counterfactuals_by_name(adata) -> None:
    model = make(adata, condition_key="three")
    both = model.get_normalized_expression(n_samples=25, quantity="mean", seed=0)
    untreated = model.get_counterfactual_expression("control", seed=0)
    pd.testing.assert_frame_equal(untreated, both["background"])
    with pytest.warns(UserWarning, match="the same for every treatment"):
        from_prior = model.get_counterfactual_expression("drug1", salient_source="prior", seed=0)
    for drug1 in (from_prior, model.get_counterfactual_expression("drug1", seed=0)):
        assert drug1.iloc[12:19].equals(both["salient"].iloc[12:19])
        assert not drug1.iloc[19:].equals(both["salient"].iloc[19:])
        assert not drug1.iloc[:12].equals(both["background"].iloc[:12])
    with pytest.raises(ValueError, match="'aggregate_posterior' or 'prior', not 'posterior'"):
        model.get_counterfactual_expression("drug1", salient_source="posterior")
    with pytest.raises(ValueError, match=r"salient_source must be .* not 'posterior'"):
        model.posterior_predictive_sample(salient_source="posterior")
    with pytest.raises(ValueError, match=r"'drug3' is not a condition.*drug2"):
        model.get_counterfactual_expression("drug3")
    nameless = make(adata, condition_key=None)
    assert nameless.get_counterfactual_expression(0).shape == (26, GENES)
    with pytest.raises(ValueError, match="0 \\(background\\) and 1"):
        nameless.get_counterfactual_expression("drug1")


def test_the_treatments_warning_goes_with_a_prior_that_tells_them_apart(adata) -> None:
    prior = PerConditionNormal(3, 2)
    with torch.no_grad():
        prior.means.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]))
    model = make(adata, condition_key="three", salient_prior=prior)
    one, other = (
        model.get_counterfactual_expression(
            name, indices=np.arange(12), salient_source="prior", seed=0
        )
        for name in ("drug1", "drug2")
    )
    assert not np.allclose(one, other)


def test_treatment_effects_have_intervals(adata) -> None:
    model = make(adata)
    effect = model.get_treatment_effect(n_samples=60, seed=0, gene_list=["gene3"])
    assert effect["mean"].shape == (26, 1)
    assert (effect["lower"] <= effect["mean"]).all(axis=None)
    assert (effect["mean"] <= effect["upper"]).all(axis=None)
    assert not effect["mean"].iloc[:12].any(axis=None)
    wide = model.get_treatment_effect(n_samples=60, seed=0, interval=0.5, gene_list=["gene3"])
    assert (wide["lower"] >= effect["lower"]).all(axis=None)
    with pytest.raises(ValueError, match="interval"):
        model.get_treatment_effect(interval=95)


def test_intervals_cover_what_they_say(adata) -> None:
    model = make(adata)
    target = np.arange(12, 26)
    few = model.get_treatment_effect(indices=target, n_samples=39, interval=0.9, seed=0)
    given, without = (
        model.get_specific_normalized_expression(
            indices=target, n_samples=2000, return_mean=False, expression_type=kind, seed=1
        )
        for kind in ("salient", "background")
    )
    change = np.log2(given + 1e-5) - np.log2(without + 1e-5)
    lower, upper = few["lower"].to_numpy(), few["upper"].to_numpy()
    inside = ((change >= lower) & (change <= upper)).mean()
    assert inside == pytest.approx(0.9, abs=0.025)
    with pytest.raises(ValueError, match="takes at least n_samples=39"):
        model.get_treatment_effect(n_samples=25, interval=0.95)


@pytest.mark.slow
def test_a_known_effect_is_found() -> None:
    adata = simulate(SimulationSettings(n_background=1000, n_target=1000, n_genes=100), seed=5)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    pyro.set_rng_seed(0)
    model = ContrastiveVI(adata, wasserstein_penalty=1.0)
    model.train(
        max_epochs=80, enable_progress_bar=False, seed=0, plan_kwargs={"lr": 3e-3, "eps": 1e-8}
    )
    target = np.flatnonzero(adata.obs["condition"] == "treated")
    effect = model.get_treatment_effect(indices=target, n_samples=40, seed=0)["mean"].to_numpy()
    # The truth: the softmax's normalisation is the same for all genes of a cell.
    truth = adata.obsm["s"][target] @ adata.varm["s_loadings"].T / np.log(2)
    centred = [m - m.mean(1, keepdims=True) for m in (effect, truth)]
    assert np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1] > 0.85
