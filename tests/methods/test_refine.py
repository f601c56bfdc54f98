"""The argument `refine` of the methods, and refined posteriors that are kept with a model."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_files import edit_config
from small_model import make, small_adata

from pyro_contrastive import (
    ContrastiveVI,
    MixtureOfGaussians,
    NormalizingFlowPrior,
    PerConditionNormal,
    SparseSalient,
    VampPrior,
)
from pyro_contrastive.analysis import refined_cells
from pyro_contrastive.analysis.refinement import Refinement, refine
from pyro_contrastive.analysis.refinement_start import guide_moments
from pyro_contrastive.methods.interventions import query_under

CALLS = {
    "latents": lambda m, **k: m.get_latent_representation(**k),
    "background latents": lambda m, **k: m.get_latent_representation(
        representation_kind="background", **k
    ),
    "a draw": lambda m, **k: m.get_latent_representation(give_mean=False, seed=0, **k),
    "expression": lambda m, **k: m.get_normalized_expression(n_samples=3, seed=0, **k)["salient"],
    "salient": lambda m, **k: m.get_salient_normalized_expression(seed=0, **k),
    "specific": lambda m, **k: m.get_specific_normalized_expression(
        indices_to_return_salient=[0, 20], seed=0, **k
    ),
    "counterfactual": lambda m, **k: m.get_counterfactual_expression("treated", seed=0, **k),
    "effect": lambda m, **k: m.get_treatment_effect(n_samples=39, seed=0, **k)["lower"],
    "differential": lambda m, **k: m.differential_expression(
        groupby="condition", group1="treated", n_samples_overall=60, seed=0, silent=True, **k
    )[["proba_de", "lfc_mean"]],
    "elbo": lambda m, **k: m.get_elbo(return_mean=False, seed=0, **k),
    "reconstruction": lambda m, **k: m.get_reconstruction_error(return_mean=False, seed=0, **k)[
        "reconstruction_loss"
    ],
    "marginal": lambda m, **k: m.get_marginal_ll(n_mc_samples=30, return_mean=False, seed=0, **k),
    "k": lambda m, **k: m.pareto_k(n_samples=30, seed=0, **k)["k"],
    "replicates": lambda m, **k: m.posterior_predictive_sample(n_samples=2, seed=0, **k),
    "replicates under": lambda m, **k: m.posterior_predictive_sample(
        condition="treated", seed=0, **k
    ),
    "streamed": lambda m, **k: next(m.iterate_posterior_predictive(seed=0, **k)).x,
    "check": lambda m, **k: m.posterior_predictive_check(
        n_samples=20, statistics=["mean"], seed=0, **k
    ).genes["replicate_mean"],
}


@pytest.fixture(scope="module")
def model() -> ContrastiveVI:
    made = make(small_adata())
    made.train(max_epochs=15, enable_progress_bar=False, seed=0, train_size=0.8)
    return made


def batch_of(model):
    return next(iter(model._query(None, None).minibatches()))


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_every_method_answers_from_refined_posteriors(model, name) -> None:
    call = CALLS[name]
    steps = True if name == "effect" else 6  # as many as it takes by default; elsewhere a few do
    plain, refined, again, few = (
        np.asarray(call(model, refine=choice)) for choice in (False, steps, steps, 3)
    )
    assert np.isfinite(refined).all()
    assert refined.shape == plain.shape
    np.testing.assert_array_equal(refined, again)
    assert not np.array_equal(refined, plain)
    assert not np.array_equal(refined, few)
    usual = refined if name == "effect" else plain
    np.testing.assert_array_equal(usual, np.asarray(call(model)))


def test_every_method_that_draws_from_the_guide_takes_refine() -> None:
    """By their signatures: a method with draws and without the argument would be forgotten."""
    without = {"prior_predictive_sample", "simulation_based_calibration", "posterior_accuracy"}
    for name, method in inspect.getmembers(ContrastiveVI, inspect.isfunction):
        parameters = inspect.signature(method).parameters
        draws = {"n_samples", "n_mc_samples", "give_mean"} & set(parameters)
        if draws and not name.startswith("_") and name not in without:
            assert "refine" in parameters, name


def test_refined_latents_are_the_means_of_the_refined_posteriors(model) -> None:
    batch = batch_of(model)
    posterior = refine(model.module, batch)
    s = model.get_latent_representation(refine=True)
    z = model.get_latent_representation(representation_kind="background", refine=True)
    target = batch.is_target.numpy()
    np.testing.assert_allclose(z, posterior.marginals()["z"][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(s, posterior.marginals()["s"][0], rtol=1e-4, atol=1e-5)
    encoded = guide_moments(model.module, batch)["s"][0].numpy()
    np.testing.assert_allclose(s[~target], encoded[~target], rtol=1e-4, atol=1e-5)
    assert np.abs(s - encoded)[target].max() > 0.05


def test_refined_posteriors_are_better(model) -> None:
    before, after = (
        model.pareto_k(n_samples=200, seed=0, refine=choice) for choice in (False, True)
    )
    assert after["elbo"].mean() > before["elbo"].mean() + 0.5
    assert (after["elbo"] > before["elbo"] - 0.2).all()
    assert after["k"].median() < before["k"].median()
    few, more = (
        model.get_marginal_ll(n_mc_samples=30, seed=0, refine=choice) for choice in (False, True)
    )
    many = model.get_marginal_ll(n_mc_samples=3000, seed=1)
    assert few < more
    assert abs(more - many) < abs(few - many)  # 30 refined draws are worth thousands


def test_weights_for_arviz_vary_less(model) -> None:
    pytest.importorskip("arviz")
    spread = []
    for choice in (False, True):
        made = model.to_arviz(n_samples=100, seed=0, refine=choice, prior=False, predictive=False)
        spread.append(float(np.asarray(made["sample_stats"]["log_weight"]).std(axis=1).mean()))
    assert spread[1] < 0.6 * spread[0]


def test_a_latent_library_size_is_refined_too() -> None:
    model = make(small_adata(), use_observed_lib_size=False)
    model.train(max_epochs=5, enable_progress_bar=False, seed=0, train_size=0.8)
    posterior = refine(model.module, batch_of(model))
    mean, variance = posterior.marginals()["library"]
    expected = np.exp(mean.numpy() + variance.numpy() / 2)
    found = model.get_latent_library_size(refine=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # The counts say nearly all there is to know about it.
    totals = np.asarray(model.adata.X.sum(1)).ravel()
    plain = model.get_latent_library_size()
    assert (
        np.abs(np.log(found.ravel() / totals)).mean()
        < 0.5 * np.abs(np.log(plain.ravel() / totals)).mean()
    )


def three_conditions() -> ContrastiveVI:
    adata = small_adata()
    ContrastiveVI.setup_anndata(adata, condition_key="three", background="control")
    model = ContrastiveVI.from_preset(
        adata, "multiGroupVI", n_hidden=8, n_background_latent=3, n_salient_latent=2
    )
    model.train(max_epochs=3, enable_progress_bar=False, seed=0, train_size=1.0)
    return model


def test_donors_are_encoded_under_their_own_treatment() -> None:
    """multiGroupVI has other salient dimensions for every treatment."""
    model = three_conditions()
    for code, drug in ((1, "drug1"), (2, "drug2")):
        _, intervention = query_under(
            model, drug, None, None, None, "aggregate_posterior", refine=False
        )
        donors = intervention.donors
        assert set(donors.data.condition[donors.cells]) == {code}
    counts = model.get_counterfactual_expression("drug2", indices=[0, 1], refine=True, seed=0)
    assert np.isfinite(counts.to_numpy()).all()


@pytest.fixture
def n_refined(monkeypatch):
    """Count the cells that are refined."""
    seen = []

    def counted(vae, batch, settings):
        seen.append(len(batch))
        return refine(vae, batch, settings)

    monkeypatch.setattr(refined_cells, "refine", counted)
    return seen


@pytest.fixture
def own_model() -> ContrastiveVI:
    made = make(small_adata())
    made.train(max_epochs=3, enable_progress_bar=False, seed=0, train_size=0.8)
    return made


def test_kept_posteriors_are_used_and_change_nothing(own_model, n_refined) -> None:
    model = own_model
    expected = model.get_treatment_effect(n_samples=39, seed=0, refine=True)["mean"]
    model.refine_posterior()
    n_refined.clear()
    found = model.get_treatment_effect(n_samples=39, seed=0, refine=True)["mean"]
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-4)
    model.get_latent_representation(refine=True)
    model.get_elbo(indices=[4, 20], refine=30)  # the same number of steps
    assert not n_refined
    model.get_elbo(indices=[4, 20], refine=19)
    assert n_refined == [2]


def test_only_some_cells_are_kept(own_model, n_refined) -> None:
    own_model.refine_posterior(indices=[20, 1])
    n_refined.clear()
    own_model.get_elbo(indices=[1, 2, 20], refine=True)
    assert n_refined == [1]


def test_kept_posteriors_are_saved(own_model, n_refined, tmp_path) -> None:
    own_model.refine_posterior(n_steps=7)
    own_model.save(tmp_path / "model", save_anndata=True)
    n_refined.clear()
    loaded = ContrastiveVI.load(tmp_path / "model")
    for before, after in zip(
        *(
            m.get_treatment_effect(n_samples=39, seed=0, refine=7).values()
            for m in (own_model, loaded)
        ),
        strict=True,
    ):
        pd.testing.assert_frame_equal(before, after)
    assert not n_refined
    assert not set(loaded.module.state_dict()) ^ set(own_model.module.state_dict())


def test_kept_posteriors_that_no_longer_hold_are_made_again(own_model, n_refined) -> None:
    model = own_model
    model.refine_posterior()
    n_refined.clear()

    def asked(adata=None, indices=(3, 4)):
        n_refined.clear()
        model.get_elbo(adata, list(indices), refine=True)
        return sum(n_refined)

    assert asked() == 0
    assert asked(model.adata.copy()) == 2  # other data, for all the model knows
    counts = model.adata.X
    model.adata.X = counts.copy()
    model.adata.X[4] = 2 * model.adata.X[4]
    assert asked() == 1
    model.adata.X = counts
    assert asked() == 0
    with torch.no_grad():
        next(model.module.model.parameters()).add_(0.01)
    assert asked() == 2
    with torch.no_grad():
        next(model.module.model.parameters()).sub_(0.01)
    model.train(max_epochs=1, enable_progress_bar=False, train_size=0.8)
    assert model._stored_posteriors is None


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("widths", {"z": 3, "s": 3}, "shapes that belong together"),
        ("widths", {"z": -3}, "numbers of latents"),
        ("n_steps", "20", "is not a table of"),
        ("positive", None, "is not a table of"),
    ],
)
def test_changed_files_of_kept_posteriors(own_model, tmp_path, entry, value, message) -> None:
    own_model.refine_posterior(indices=[0, 1], n_steps=1)
    own_model.save(tmp_path / "model")
    edit_config(tmp_path / "model", lambda config: config["refined"].update({entry: value}))
    with pytest.raises(ValueError, match=message):
        ContrastiveVI.load(tmp_path / "model")


def test_a_missing_tensor_of_kept_posteriors(own_model, tmp_path) -> None:
    own_model.refine_posterior(indices=[0, 1], n_steps=1)
    own_model.save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["refined.factor"]
    save_file(tensors, path)
    edit_config(tmp_path / "model", lambda _: None)  # checksums that fit the file
    with pytest.raises(ValueError, match="damaged or incomplete"):
        ContrastiveVI.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ("yes", TypeError, "refine must be True, False or a number of steps, not 'yes'"),
        (2.5, TypeError, "refine must be"),
        (0, ValueError, "a number of steps of at least 1, not 0"),
    ],
)
def test_wrong_values(model, choice, error, message) -> None:
    for call in (model.get_elbo, model.get_latent_representation, model.pareto_k):
        with pytest.raises(error, match=message):
            call(refine=choice)


def test_an_untrained_model_has_nothing_to_refine() -> None:
    model = make(small_adata())
    with pytest.raises(ValueError, match="this model has not been trained"):
        model.get_treatment_effect(refine=True)
    with pytest.raises(ValueError, match="this model has not been trained"):
        model.refine_posterior()


def test_refining_no_cells(model) -> None:
    with pytest.raises(ValueError, match="selects no cells"):
        model.refine_posterior(indices=[])
    assert len(model.get_latent_representation(indices=[], refine=True)) == 0


def test_numpy_numbers_are_numbers(model) -> None:
    plain = model.get_elbo(indices=[0, 15], seed=0, refine=3)
    assert model.get_elbo(indices=[0, 15], seed=0, refine=np.int64(3)) == plain
    assert model.get_elbo(indices=[0], seed=0, refine=np.False_) == model.get_elbo(
        indices=[0], seed=0
    )
    assert Refinement().n_steps == 30


PRIORS = {
    "mixture": lambda: MixtureOfGaussians(3, n_components=4),
    "VampPrior": lambda: VampPrior(15, n_components=4, n_covariates=2),
    "flow": lambda: NormalizingFlowPrior(3),
    "Laplace": lambda: dist.Laplace(torch.zeros(3), 1.0).to_event(1),
    "gamma": lambda: dist.Gamma(torch.full((3,), 2.0), 1.0).to_event(1),
    "Student": lambda: dist.StudentT(5.0, torch.zeros(3), 1.0).to_event(1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_can_be_refined_under(name) -> None:
    torch.manual_seed(0)
    model = make(small_adata(), background_prior=PRIORS[name]())
    model.train(max_epochs=5, enable_progress_bar=False, seed=0, train_size=0.8)
    before, after = (model.pareto_k(n_samples=100, seed=0, refine=choice) for choice in (False, 20))
    assert np.isfinite(after["elbo"]).all()
    assert after["elbo"].mean() > before["elbo"].mean()


@pytest.mark.parametrize("prior", [SparseSalient(2), PerConditionNormal(2, 2)])
def test_salient_priors_can_be_refined_under(prior) -> None:
    torch.manual_seed(0)
    model = make(small_adata(), salient_prior=prior)
    model.train(max_epochs=5, enable_progress_bar=False, seed=0, train_size=0.8)
    before, after = (model.pareto_k(n_samples=100, seed=0, refine=choice) for choice in (False, 20))
    assert after["elbo"].mean() > before["elbo"].mean()
