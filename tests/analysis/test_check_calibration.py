"""A check passes data drawn as the replicates are, and fails data that are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
from anndata import AnnData
from ppc_helpers import checked as compared
from scipy.stats import kstest

from pyro_contrastive import ContrastiveVI, NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyro_contrastive.analysis.ppc import PosteriorPredictiveCheck
from pyro_contrastive.testing.simulation import SimulationSettings, simulate

N_SAMPLES, N_CELLS, N_GENES = 49, 120, 60


def rates(rng: np.random.Generator) -> np.ndarray:
    library = rng.lognormal(5.5, 0.4, (N_CELLS, 1))
    scale = rng.dirichlet(np.ones(N_GENES), size=N_CELLS)
    return 0.02 + library * scale


def negative_binomial(rng, mean, theta, size=()):
    return rng.poisson(rng.gamma(theta, mean / theta, (*size, *mean.shape)))


def share_outside(result: PosteriorPredictiveCheck, statistic: str, unit: str = "gene") -> float:
    table = result.overall.query("group_by == 'all'")
    found = table[(table["statistic"] == statistic) & (table["unit"] == unit)]
    return float(found["share_outside"].iloc[0])


def checked(data: np.ndarray, replicates: np.ndarray, **given: Any) -> PosteriorPredictiveCheck:
    labels = np.where(np.arange(len(data)) % 2, "treated", "control")
    groups = {"groups": {"condition": labels}, "contrast": ("condition", "control")}
    return compared(data, replicates, seed=1, **(groups | given))


@pytest.fixture(scope="module")
def right() -> PosteriorPredictiveCheck:
    # Replicates at the latents that made the data: then p-values are uniform, not only central.
    rng = np.random.default_rng(0)
    drawn = negative_binomial(rng, rates(rng), 2.0, (N_SAMPLES + 1,))
    return checked(drawn[0], drawn[1:])


@pytest.mark.parametrize("statistic", ["mean", "variance", "cv", "zero_fraction", "maximum"])
def test_p_values_of_a_model_that_is_right_are_uniform(right, statistic):
    for table in (right.genes.query("group == 'all'"), right.cells):
        p_values = table.loc[table["statistic"] == statistic, "p_value"].dropna()
        assert len(p_values) >= N_GENES
        # Ties pull p-values of few-valued statistics to the middle, by little here.
        assert kstest(p_values, "uniform").pvalue > 1e-3
        outside = (p_values < 0.05) | (p_values > 0.95)
        assert outside.mean() < 0.25


def test_a_model_that_is_right_agrees_and_covers_what_it_says(right):
    library = right.cells.loc[right.cells["statistic"] == "library_size", "p_value"]
    assert kstest(library, "uniform").pvalue > 1e-3
    assert kstest(right.effects["p_value"], "uniform").pvalue > 1e-3
    table = right.calibration.query("group == 'all'")
    assert (table["z"].abs() < 4).all()
    assert table["observed"].to_numpy() == pytest.approx(table["level"].to_numpy(), abs=0.03)
    assert (right.pit.query("group == 'all'")["z"].abs() < 4.5).all()
    summary = right.summary()
    assert summary["z"].abs().max() < 4.5
    assert (summary["reading"] == "agrees").mean() > 0.7


def test_overdispersion_that_a_poisson_lacks_is_seen():
    rng = np.random.default_rng(1)
    mean = rates(rng)
    result = checked(negative_binomial(rng, mean, 1.0), rng.poisson(mean, (N_SAMPLES, *mean.shape)))
    assert share_outside(result, "variance") > 0.8
    assert share_outside(result, "zero_fraction") > 0.5
    summary = result.summary().set_index(["unit", "statistic"])
    assert summary.loc[("gene", "variance"), "z"] > 10
    assert summary.loc[("bin", "variance_trend"), "reading"] == "higher in the data"
    assert summary.loc[("entry", "coverage 0.9"), "observed"] < 0.8
    assert summary.loc[("entry", "coverage 0.9"), "reading"] == "lower in the data"
    pit = result.pit.query("group == 'all'")["observed"].to_numpy() * 20
    assert min(pit[0], pit[-1]) > 1.5  # a U: the model is too narrow
    assert pit[8:12].max() < 1


def test_zeros_that_a_negative_binomial_lacks_are_seen():
    rng = np.random.default_rng(2)
    mean = rates(rng) + 3
    kept = rng.random(mean.shape) > 0.3
    result = checked(
        negative_binomial(rng, mean, 20.0) * kept,
        negative_binomial(rng, mean, 20.0, (N_SAMPLES,)),
    )
    assert share_outside(result, "zero_fraction") > 0.95
    row = result.summary().set_index(["unit", "statistic"]).loc[("bin", "zero_fraction_trend")]
    assert row["observed"] - row["replicate_mean"] > 0.2


def test_an_effect_that_a_model_lacks_is_seen():
    rng = np.random.default_rng(3)
    mean = rates(rng)
    treated = mean.copy()
    treated[1::2, :10] *= 8
    result = checked(rng.poisson(treated), rng.poisson(mean, (N_SAMPLES, *mean.shape)))
    effects = result.effects.set_index("gene")
    assert (effects.loc[[str(g) for g in range(10)], "p_value"] < 0.05).all()
    row = result.overall[result.overall["statistic"] == "abs_log2_fold_change"].iloc[0]
    assert row["z"] > 10


def test_genes_that_go_together_are_seen():
    rng = np.random.default_rng(4)
    mean = rates(rng)
    together = mean * rng.lognormal(0, 0.7, (N_CELLS, 1))
    together *= mean.sum(1, keepdims=True) / together.sum(1, keepdims=True)
    shared = together.copy()
    shared[:, :30] *= rng.lognormal(0, 1.0, (N_CELLS, 1))
    given = {"statistics": ["correlation"], "correlation_genes": range(30)}
    missed = checked(rng.poisson(shared), rng.poisson(mean, (N_SAMPLES, *mean.shape)), **given)
    found = checked(rng.poisson(shared), rng.poisson(shared, (N_SAMPLES, *mean.shape)), **given)
    z = [r.overall.query("group_by == 'all'")["z"].iloc[0] for r in (missed, found)]
    assert z[0] > 20
    assert abs(z[1]) < 4


def simulated(**settings: Any) -> AnnData:
    return simulate(SimulationSettings(**({"n_genes": 50} | settings)), seed=3)


def model_of(adata: AnnData, **given: Any) -> ContrastiveVI:
    keys = {"condition_key": "condition", "background": "control"}
    size_factor_key = given.pop("size_factor_key", None)
    ContrastiveVI.setup_anndata(adata, size_factor_key=size_factor_key, **keys)
    small = {"n_hidden": 32, "n_background_latent": 4, "n_salient_latent": 2}
    return ContrastiveVI(adata, **(small | given))


def test_a_wrong_library_size_is_seen():
    # A Poisson has the observed library size for its total, trained or not.
    adata = simulated(n_background=100, n_target=100)
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.obs["right"] = totals
    adata.obs["wrong"] = np.roll(totals, 1)
    shares = {}
    for key in ("right", "wrong"):
        model = model_of(adata, likelihood=Poisson(), size_factor_key=key)
        result = model.posterior_predictive_check(statistics=["library_size"], seed=0)
        shares[key] = share_outside(result, "library_size", "cell")
    assert shares["right"] < 0.02  # the totals are the data's own: nearer than by chance
    assert shares["wrong"] > 0.6


def test_the_program_draws_what_it_says_it_draws():
    # The first of many draws given the same latents is "data" to the others.
    adata = simulated(n_background=60, n_target=60)
    model = model_of(adata)
    drawn = model.prior_predictive_sample(n_samples=50, seed=0)
    result = checked(drawn[0], drawn[1:])
    for statistic in ("mean", "variance", "zero_fraction"):
        p_values = result.cells.loc[result.cells["statistic"] == statistic, "p_value"]
        assert kstest(p_values, "uniform").pvalue > 1e-3
    assert (result.calibration.query("group == 'all'")["z"].abs() < 4).all()


@pytest.mark.slow
def test_a_trained_poisson_fails_overdispersed_counts_and_a_negative_binomial_does_not():
    adata = simulated(inverse_dispersion=1.0, zero_probability=0.0)
    shares, missing, coverage = {}, {}, {}
    for name, likelihood in (("poisson", Poisson()), ("nb", NegativeBinomial())):
        model = model_of(adata, likelihood=likelihood)
        model.train(max_epochs=60, seed=0, enable_progress_bar=False, plan_kwargs={"lr": 5e-3})
        result = model.posterior_predictive_check(n_samples=20, seed=0)
        shares[name] = share_outside(result, "variance")
        summary = result.summary().set_index(["unit", "statistic"])
        zeros = summary.loc[("gene", "zero_fraction")]
        missing[name] = zeros["observed"] - zeros["replicate_mean"]
        coverage[name] = summary["observed"]["entry", "coverage 0.9"]
    assert shares["poisson"] > 0.8 > shares["nb"]
    assert missing["poisson"] > 0.07
    assert abs(missing["nb"]) < 0.5 * missing["poisson"]
    assert coverage["poisson"] < 0.75
    assert coverage["nb"] > 0.85


@pytest.mark.slow
def test_a_trained_negative_binomial_fails_extra_zeros_and_a_zero_inflated_one_does_not():
    adata = simulated(inverse_dispersion=50.0, zero_probability=0.4)
    shares, zeros = {}, {}
    likelihoods = (("nb", NegativeBinomial()), ("zinb", ZeroInflatedNegativeBinomial()))
    for name, likelihood in likelihoods:
        model = model_of(adata, likelihood=likelihood, use_observed_lib_size=False)
        model.train(max_epochs=80, seed=0, enable_progress_bar=False, plan_kwargs={"lr": 5e-3})
        result = model.posterior_predictive_check(n_samples=20, seed=0)
        shares[name] = share_outside(result, "zero_fraction")
        row = result.summary().set_index(["unit", "statistic"]).loc[("gene", "zero_fraction")]
        zeros[name] = row["observed"] - row["replicate_mean"]
    assert shares["nb"] > 0.7
    assert zeros["nb"] > 0.05
    assert abs(zeros["zinb"]) < 0.5 * zeros["nb"]
    assert shares["zinb"] < shares["nb"] - 0.2


def test_a_shared_parameter_is_drawn_once_for_all_mini_batches():
    adata = simulated(n_background=40, n_target=40)
    model = model_of(adata, likelihood=NegativeBinomial(), dispersion_prior=dist.Gamma(2.0, 1.0))
    seen = []
    forward = model.module.model.likelihood.forward

    def watched(heads, library):
        seen.append(heads["inverse_dispersion"].reshape(3, -1))
        return forward(heads, library)

    model.module.model.likelihood.forward = watched
    for draw in (model.posterior_predictive_sample, model.prior_predictive_sample):
        seen.clear()
        draw(n_samples=3, batch_size=30, seed=0)
        assert len(seen) == 3
        assert (seen[0] == seen[1]).all()
        assert (seen[0] == seen[2]).all()
        assert (seen[0][0] != seen[0][1]).any()
