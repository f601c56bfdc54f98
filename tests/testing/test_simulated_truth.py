"""Cells simulated from a fitted model, and intervals that cover what made them."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import anndata as ad
import numpy as np
import pytest
import torch
from scipy.stats import norm

from pyro_contrastive import ContrastiveVI, NegativeBinomial, Poisson
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


class Intervals(NamedTuple):
    """How 90 % intervals of target cells compare with the truth, over cells and genes."""

    covered: float
    error: float  # root mean square of the error of the posterior mean
    sd: float  # what the error would be, if intervals of a normal posterior were right

    @classmethod
    def of(cls, mean, lower, upper, truth) -> Self:
        covered = (lower <= truth) & (truth <= upper)
        error = np.sqrt(np.square(mean - truth).mean())
        sd = np.sqrt(np.square(upper - lower).mean()) / (2 * norm.ppf(0.95))
        return cls(float(covered.mean()), float(error), float(sd))


def intervals(model, adata, cells, truth, *, refine) -> dict[str, Intervals]:
    """Compare log2 expression and effects with the truth."""
    expression, effects = (values[cells] for values in truth)
    common = {"n_samples": 199, "refine": refine, "seed": 0}
    draws = model.get_normalized_expression(adata, cells, return_mean=False, **common)["salient"]
    draws = np.log2(draws + 1e-5)
    lower, upper = np.quantile(draws, [0.05, 0.95], axis=0, method="weibull")
    found = model.get_treatment_effect(adata, cells, interval=0.9, **common)
    effect = (found[name].to_numpy() for name in ("mean", "lower", "upper"))
    return {
        "expression": Intervals.of(draws.mean(0), lower, upper, np.log2(expression + 1e-5)),
        "effect": Intervals.of(*effect, effects),
    }


def test_intervals_of_refined_posteriors_cover_what_made_new_cells(model, cells) -> None:
    truth = cells.layers["scale"], cells.layers["effect"]
    target = np.flatnonzero(cells.obs["condition"] == "treated")
    guide, refined = (intervals(model, cells, target, truth, refine=r) for r in (False, True))
    for name, found in refined.items():
        assert 0.85 <= found.covered <= 0.95, refined
        assert found.error == pytest.approx(found.sd, rel=0.2), refined
        assert guide[name].covered < found.covered - 0.05, guide


@pytest.mark.slow
def test_ranks_of_a_trained_model_are_uniform_once_refined(model) -> None:
    guide, refined = (
        model.simulation_based_calibration(n_simulations=300, method=method, seed=0).table
        for method in ("guide", "refined")
    )
    assert refined["uniform"].all()
    assert refined["spread"].between(0.75, 1.25).all()
    assert not guide.loc[["z1", "z2", "z3", "s1", "s2"], "uniform"].any()
    assert (guide.loc[["z1", "z2", "z3", "s1", "s2"], "spread"] > 1.2).all()


@pytest.mark.slow
def test_ranks_of_a_trained_poisson_with_a_latent_library_are_uniform_once_refined() -> None:
    adata = simulate(SimulationSettings(100, 100, 30, mean_total=300.0), seed=0)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    torch.manual_seed(0)
    model = ContrastiveVI(adata, likelihood=Poisson(), use_observed_lib_size=False, **SIZES)
    model.train(max_epochs=30, seed=0, enable_progress_bar=False, plan_kwargs={"lr": 5e-3})
    found = model.simulation_based_calibration(n_simulations=400, method="refined", seed=0).table
    assert "library" in found.index
    assert found["uniform"].all()


def learned(adata: ad.AnnData, n_z: int, n_s: int) -> tuple[Any, Any]:
    """Fit the cells, and compare intervals of held-out ones with the truth: guide, refined."""
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    torch.manual_seed(0)
    model = ContrastiveVI(adata, n_hidden=64, n_background_latent=n_z, n_salient_latent=n_s)
    model.train(
        schedule="fast", early_stopping=True, train_size=0.8, seed=0, enable_progress_bar=False
    )
    scale, untreated = (adata.layers[name] for name in ("scale", "untreated"))
    truth = scale, np.log2(scale + 1e-5) - np.log2(untreated + 1e-5)
    held_out = np.asarray(model.validation_indices)
    target = held_out[(adata.obs["condition"] == "treated").to_numpy()[held_out]]
    guide, refined = (intervals(model, None, target, truth, refine=r) for r in (False, True))
    return guide, refined


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["log-linear", "cell types"])
def test_where_the_decoder_is_learned_its_error_is_missing_from_intervals(kind) -> None:
    """The bands are what was measured: intervals of cells of another model cover too little."""
    if kind == "log-linear":
        guide, refined = learned(simulate(SimulationSettings(300, 300, 100), seed=0), 3, 2)
    else:
        made = simulate_treatment(TreatmentSettings(500, 500, 200, response_sd=0.5), seed=0)
        guide, refined = learned(made, 5, 3)
    for name, found in refined.items():
        assert 0.55 <= found.covered <= 0.88, refined
        assert found.error > 1.2 * found.sd, refined
        assert found.covered > guide[name].covered - 0.02, (guide, refined)


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
