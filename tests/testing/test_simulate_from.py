"""Cells simulated from a fitted model, and intervals that cover what made them."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch

from pyro_contrastive import ContrastiveVI, NegativeBinomial
from pyro_contrastive.testing import (
    SimulationSettings,
    TreatmentSettings,
    simulate,
    simulate_from,
    simulate_treatment,
)

SIZES = {"n_hidden": 32, "n_background_latent": 3, "n_salient_latent": 2}


@pytest.fixture(scope="module")
def model() -> ContrastiveVI:
    adata = simulate(SimulationSettings(150, 150, 60, mean_total=600.0), seed=0)
    ContrastiveVI.setup_anndata(
        adata, condition_key="condition", background="control", size_factor_key="library"
    )
    torch.manual_seed(0)
    model = ContrastiveVI(adata, likelihood=NegativeBinomial(), **SIZES)
    model.train(max_epochs=30, seed=0, enable_progress_bar=False, plan_kwargs={"lr": 5e-3})
    return model


@pytest.fixture(scope="module")
def cells(model) -> ad.AnnData:
    return simulate_from(model, np.arange(90, 210), seed=1)


def test_what_made_the_cells_is_what_the_program_makes_of_their_latents(model, cells) -> None:
    real = model.adata[90:210]
    assert list(cells.obs_names) == list(real.obs_names)
    target = (cells.obs["condition"] == "treated").to_numpy()
    assert target.sum() == 60
    np.testing.assert_allclose(cells.layers["scale"].sum(1), 1.0, rtol=1e-5)
    z, s = (torch.as_tensor(cells.obsm[site]) for site in "zs")
    assert (cells.obsm["s"][~target] == 0).all()
    assert abs(cells.obsm["s"][target].std() - 1) < 0.2
    batch = next(iter(model._query(None, np.arange(90, 210)).minibatches()))
    module = model.module.model
    with torch.no_grad():
        scale, untreated = (
            module.decode(z, latent, batch, {})["scale"].numpy()
            for latent in (s, torch.zeros_like(s))
        )
    np.testing.assert_allclose(cells.layers["scale"], scale, rtol=1e-4, atol=1e-7)
    effect = np.log2(scale + 1e-5) - np.log2(untreated + 1e-5)
    np.testing.assert_allclose(cells.layers["effect"], effect, atol=1e-4)
    assert (cells.layers["effect"][~target] == 0).all()
    assert cells.layers["effect"][target].std() > 0.1
    expected = cells.layers["scale"] * batch.library.numpy()
    assert np.corrcoef(cells.X.sum(1), expected.sum(1))[0, 1] > 0.5
    assert cells.X.sum() == pytest.approx(expected.sum(), rel=0.06)


def test_the_same_seed_makes_the_same_cells(model, cells) -> None:
    again, other = (simulate_from(model, np.arange(90, 210), seed=seed) for seed in (1, 2))
    assert (again.X == cells.X).all()
    assert not (other.X == cells.X).all()


def coverage(model, cells, *, refine) -> dict[str, float]:
    """Share of 90 % intervals of expression and effect, over genes and cells, with the truth."""
    draws = model.get_normalized_expression(
        cells, n_samples=199, return_mean=False, refine=refine, seed=0
    )["salient"]
    lower, upper = np.quantile(draws, [0.05, 0.95], axis=0, method="weibull")
    scale = cells.layers["scale"]
    target = (cells.obs["condition"] == "treated").to_numpy()
    effect = model.get_treatment_effect(
        cells, np.flatnonzero(target), n_samples=199, interval=0.9, refine=refine, seed=0
    )
    truth = cells.layers["effect"][target]
    return {
        "expression": float(((lower <= scale) & (scale <= upper)).mean()),
        "effect": float(
            ((effect["lower"] <= truth) & (truth <= effect["upper"])).to_numpy().mean()
        ),
    }


def test_intervals_of_refined_posteriors_cover_what_made_new_cells(model, cells) -> None:
    refined = coverage(model, cells, refine=True)
    assert all(0.85 <= share <= 0.95 for share in refined.values()), refined
    guide = coverage(model, cells, refine=False)
    assert all(guide[name] < refined[name] - 0.05 for name in guide), guide


def test_simulators_say_what_a_cell_would_express_without_treatment() -> None:
    made = simulate(SimulationSettings(10, 20, 30), seed=3)
    ratio = np.log(made.layers["scale"]) - np.log(made.layers["untreated"])
    expected = made.obsm["s"] @ made.varm["s_loadings"].T
    centred = (values - values.mean(1, keepdims=True) for values in (ratio, expected))
    np.testing.assert_allclose(*centred, atol=1e-4)
    np.testing.assert_allclose(made.layers["untreated"].sum(1), 1.0, rtol=1e-5)
    made = simulate_treatment(TreatmentSettings(10, 20, 30), seed=3)
    ratio = np.log2(made.layers["scale"]) - np.log2(made.layers["untreated"])
    treated = (made.obs["condition"] == "treated").to_numpy()
    assert (ratio[~treated] == 0).all()
    np.testing.assert_allclose(ratio[treated].mean(0), made.var["lfc"], atol=1e-5)
    same_type = made.layers["untreated"][made.obs["cell_type"] == "type 1"]
    assert (same_type == same_type[0]).all()
