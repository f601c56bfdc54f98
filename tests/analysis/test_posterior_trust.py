"""k, refined posteriors, NUTS and calibration, where the posterior has a closed form."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from helpers import N_GENES, make_vae
from linear_gaussian import (
    N_Z,
    exact_log_likelihood,
    exact_posterior,
    linear_data,
    linear_vae,
    loadings,
)

from pyro_contrastive import CellBatch, Poisson
from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.analysis.calibration import Calibration, calibrate, rank_histogram
from pyro_contrastive.analysis.comparison import estimate
from pyro_contrastive.analysis.diagnosis.posterior_findings import calibration_finding
from pyro_contrastive.analysis.likelihood import log_weights_of_cells
from pyro_contrastive.analysis.nuts import NutsSettings, sample_nuts
from pyro_contrastive.analysis.posterior_accuracy import posterior_accuracy
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.ranks import Quantities, ranks_among
from pyro_contrastive.analysis.refinement import Refinement, refine
from pyro_contrastive.analysis.refinement_start import guide_moments
from pyro_contrastive.interop.module.populations import trace_of
from pyro_contrastive.plotting import plot_ranks

ALL = np.arange(8)


def batch_of(data, n=8):
    return data.cells(np.arange(n), dtype=torch.float64)


def test_of_an_exact_guide_every_weight_is_the_marginal_likelihood() -> None:
    vae, data = linear_vae(), linear_data(4, 4)
    weights = log_weights_of_cells(Query(vae, data, ALL), 100)
    exact = exact_log_likelihood(loadings(True), batch_of(data)).numpy()
    np.testing.assert_allclose(weights, np.repeat(exact[:, None], 100, axis=1), rtol=1e-8)
    found = estimate(weights)
    np.testing.assert_allclose(found.psis, exact, rtol=1e-8)
    assert (found.k < 0.1).all()
    assert (found.variance < 1e-12).all()


def test_k_tells_a_narrow_guide_from_a_wide_one() -> None:
    data = linear_data(4, 4)
    by_width = {
        width: np.median(
            estimate(log_weights_of_cells(Query(linear_vae(width=width), data, ALL), 1000)).k
        )
        for width in (0.3, 0.7, 1.3)
    }
    # Where draws have w times the right width, the tail of the weights has the shape 1 - w^2.
    assert by_width[0.3] == pytest.approx(0.91, abs=0.2)
    assert by_width[0.7] == pytest.approx(0.51, abs=0.2)
    assert by_width[1.3] < 0.2


def test_estimates_of_a_wide_guide_are_near_the_marginal_likelihood() -> None:
    data = linear_data(4, 4)
    found = estimate(log_weights_of_cells(Query(linear_vae(width=1.3), data, ALL), 2000))
    exact = exact_log_likelihood(loadings(True), batch_of(data)).numpy()
    assert np.abs(found.psis - exact).max() < 0.15
    assert np.abs(found.iw - exact).max() < 0.15
    assert (np.abs(found.iw - exact) < 6 * np.sqrt(found.variance) + 1e-3).all()


@pytest.mark.slow
def test_nuts_draws_from_the_posterior_wherever_it_starts() -> None:
    vae, data = linear_vae(orthogonal=False, exact=False), linear_data(1, 2)
    batch = batch_of(data, 3)
    torch.manual_seed(0)
    start = guide_moments(vae, batch)  # of an untrained encoder: off
    draws = sample_nuts(vae, batch, start, NutsSettings(n_draws=120, n_warmup=60))
    mean, covariance = exact_posterior(loadings(False), batch)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    target = batch.is_target
    for site, part, cells in (
        ("z", slice(None, N_Z), slice(None)),
        ("s", slice(N_Z, None), target),
    ):
        found = draws.summary(site)
        error = ((found["mean"] - mean[:, part]) / sd[:, part])[cells]
        assert error.abs().max() < 0.6
        ratio = (found["sd"] / sd[:, part])[cells]
        assert 0.75 < ratio.min() < ratio.max() < 1.5
        assert found["rhat"][cells].max() < 1.15
        assert found["ess"][cells].min() > 25
    assert draws.summary("s")["mean"][~target].isnan().all()
    z_draws = draws.values["z"].flatten(0, 1)[:, 0]
    correlation = np.corrcoef(z_draws.T.numpy())
    exact = covariance[0, :N_Z, :N_Z] / torch.outer(sd[0, :N_Z], sd[0, :N_Z])
    np.testing.assert_allclose(correlation, exact.numpy(), atol=0.35)


def test_accuracy_of_an_exact_guide_is_perfect_and_of_a_bad_one_is_not() -> None:
    data, names = linear_data(3, 3), pd.Index([f"cell {i}" for i in range(6)])
    some = np.arange(6)

    def run(vae):
        torch.manual_seed(0)
        return posterior_accuracy(
            Query(vae, data, some, obs_names=names), n_samples=200, refinement=Refinement(40)
        )

    good, bad = run(linear_vae()), run(linear_vae(width=0.4, shift=1.0))
    assert good.cells["amortisation_gap"].abs().max() < 0.1
    assert good.cells["approximation_gap"].abs().max() < 0.1
    # KL from the exact posterior, by hand: 5 (or 3) times (w^2 + d^2 - 1 - log w^2) / 2.
    expected = 0.5 * (0.4**2 + 1.0 - 1 - 2 * np.log(0.4))
    per_dimension = bad.cells["amortisation_gap"] / np.array([3, 3, 3, 5, 5, 5])
    np.testing.assert_allclose(per_dimension, expected, atol=0.35)
    summary = bad.summary()
    assert summary.loc[("encoder", "z"), "mean_error"] == pytest.approx(1.0, abs=0.25)
    assert summary.loc[("encoder", "s"), "sd_ratio"] == pytest.approx(0.4, abs=0.1)
    assert set(bad.latents.query("site == 's'")["cell"]) == {"cell 3", "cell 4", "cell 5"}


@pytest.mark.slow
def test_nuts_is_the_reference_where_it_was_run() -> None:
    vae, data = linear_vae(), linear_data(2, 2)
    names = pd.Index(list("abcd"))
    torch.manual_seed(0)
    found = posterior_accuracy(
        Query(vae, data, np.arange(4), obs_names=names),
        n_samples=100,
        refinement=Refinement(5),
        nuts=NutsSettings(n_draws=50, n_warmup=25),
    )
    summary = found.summary()
    assert (summary["reference"] == "nuts").all()
    assert summary.loc[("encoder", "z"), "mean_error"] < 0.6
    assert 0.6 < summary.loc[("encoder", "s"), "sd_ratio"] < 1.6
    assert found.cells["max_rhat"].max() < 1.5
    assert (found.cells["n_divergent"] >= 0).all()


GENES = Quantities(genes=[0, 7], names=["first", "eighth"], pseudocount=20.0)
OF_GENES = ["expression of first", "expression of eighth", "effect on first", "effect on eighth"]


def with_expression(**guide):
    """Return a linear model whose expression is the mean of the data."""
    vae = linear_vae(**guide)
    vae.model.likelihood.expression = lambda heads: heads["mean"]
    return vae


def calibration(method="guide", **guide) -> Calibration:
    vae, data = with_expression(**guide), linear_data(300, 300)
    torch.manual_seed(0)
    return calibrate(Query(vae, data, np.arange(600)), 99, quantities=GENES, method=method)


def test_ranks_of_an_exact_posterior_are_uniform() -> None:
    found = calibration()
    table = found.table
    assert table["uniform"].all()
    assert table["spread"].between(0.8, 1.2).all()
    assert list(table.index) == ["z1", "z2", "z3", "s1", "s2", "log_likelihood", *OF_GENES]
    for name in ("s1", "effect on first"):  # a background cell has none
        assert found.ranks[name].notna().sum() == 300
    for name in ("z1", "expression of first"):
        assert found.ranks[name].between(0, 99).all()


def test_ranks_show_a_narrow_and_a_shifted_posterior() -> None:
    narrow, wide, shifted = (
        calibration(**kwargs).table for kwargs in ({"width": 0.5}, {"width": 2.0}, {"shift": 0.5})
    )
    latents = ["z1", "z2", "z3", "s1", "s2"]
    of_genes = [*latents, *OF_GENES]
    assert not narrow.loc[of_genes, "uniform"].any()
    assert (narrow.loc[of_genes, "spread"] > 1.3).all()
    assert narrow.loc[of_genes, "reading"].str.contains("too narrow").all()
    assert wide.loc[of_genes, "reading"].str.contains("too wide").all()
    assert not shifted.loc[OF_GENES, "uniform"].all()
    assert not shifted.loc[latents, "uniform"].any()
    assert (shifted.loc[latents, "shift"] < -4).all()
    assert shifted.loc[latents, "reading"].str.contains("too high").all()


@pytest.mark.slow
def test_refinement_makes_ranks_uniform_where_those_of_the_guide_are_not() -> None:
    guide = calibration(width=0.3, shift=2.0).table
    refined = calibration("refined", width=0.3, shift=2.0).table
    assert not guide["uniform"].any()
    assert refined["uniform"].all()
    assert refined["spread"].between(0.8, 1.2).all()


def test_the_quantities_of_a_linear_model_are_those_of_its_loadings() -> None:
    vae, data = with_expression(), linear_data(2, 3)
    batch = batch_of(data, 5)
    torch.manual_seed(0)
    u = {"z": torch.randn(4, 5, N_Z).double(), "s": torch.randn(4, 5, 2).double()}
    with evaluating(vae):
        found = GENES.at(Query(vae, data, np.arange(5)), batch, trace_of(u), 4)
    w = loadings(True).numpy()[[0, 7]]
    s = u["s"].numpy() * batch.is_target.numpy()[:, None]
    without = u["z"].numpy() @ w[:, :N_Z].T
    both = without + s @ w[:, N_Z:].T
    effect = np.log2(both + 20) - np.log2(without + 20)
    for k, gene in enumerate(("first", "eighth")):
        np.testing.assert_allclose(found[f"expression of {gene}"], both[..., k], rtol=1e-5)
        np.testing.assert_allclose(
            found[f"effect on {gene}"][:, 2:], effect[:, 2:, k], rtol=1e-4, atol=1e-6
        )
        assert np.isnan(found[f"effect on {gene}"][:, :2]).all()
    assert np.isnan(found["s2"][:, :2]).all()
    np.testing.assert_allclose(found["s2"][:, 2:], u["s"][:, 2:, 1])
    mean = u["z"].numpy() @ loadings(True).numpy()[:, :N_Z].T
    mean = mean + s @ loadings(True).numpy()[:, N_Z:].T
    expected = scipy.stats.norm.logpdf(batch.x.numpy(), mean, 0.5).sum(-1)
    np.testing.assert_allclose(found["log_likelihood"], expected, rtol=1e-4)


def test_equal_values_are_ranked_at_random() -> None:
    rng = np.random.default_rng(0)
    # A quantity with three values: without chance, most ranks would be one of three.
    draws = rng.integers(0, 3, (19, 4000)).astype(float)
    truth = rng.integers(0, 3, 4000).astype(float)
    ranks = ranks_among(truth, draws, rng)
    assert scipy.stats.chisquare(np.bincount(ranks.astype(int), minlength=20)).pvalue > 0.01
    clear = ranks_among(np.array([5.0, 1.5, -1.0, np.nan]), draws[:, :4], rng)
    below = int((draws[:, 1] < 1.5).sum())
    np.testing.assert_array_equal(clear, [19, below, 0, np.nan])


def test_a_posterior_that_ignores_the_data_is_noticed_by_the_likelihood_alone() -> None:
    vae, data = linear_vae(), linear_data(300, 300)
    vae.guide.encode = lambda batch: {
        site: (torch.zeros(len(batch), n).double(), torch.ones(len(batch), n).double())
        for site, n in (("z", 3), ("s", 2))
    }
    torch.manual_seed(0)
    table = calibrate(Query(vae, data, np.arange(600)), 99).table
    assert table["uniform"].drop("log_likelihood").all()
    assert not table.loc["log_likelihood", "uniform"]


@pytest.mark.slow
def test_ranks_by_nuts_are_uniform_where_those_of_the_guide_are_not() -> None:
    vae, data = linear_vae(width=0.3), linear_data(20, 20)
    torch.manual_seed(1)
    settings = NutsSettings(n_draws=40, n_warmup=40, cells_at_a_time=40)
    nuts = calibrate(Query(vae, data, np.arange(40)), 19, method="nuts", nuts=settings).table
    guide = calibrate(Query(vae, data, np.arange(40)), 19).table
    assert nuts["uniform"].all()
    assert not guide["uniform"].all()


def test_what_too_few_simulated_cells_have_is_not_tested_and_the_rest_is() -> None:
    vae, data = linear_vae(), linear_data(60, 4)
    torch.manual_seed(0)
    found = calibrate(Query(vae, data, np.arange(64)), 19)
    table = found.table
    assert table.index[table["uniform"].isna()].tolist() == ["s1", "s2"]
    assert (
        table.loc["s1", "reading"]
        == "Not tested: only 4 simulated cells have it, at least 10 are needed."
    )
    assert table.loc["z1", "p_adjusted"] == pytest.approx(min(1.0, 4 * table.loc["z1", "p_value"]))
    assert "all 4 quantities are uniform" in calibration_finding(found).reading
    assert len(plot_ranks(found)) == 4
    with pytest.raises(
        ValueError, match=r"too few ranks of \['s1'\] to draw; available: \['z1', 'z2'"
    ):
        plot_ranks(found, ["z1", "s1"])


def test_too_few_simulated_cells_for_anything_are_said_to_be() -> None:
    found = Calibration(pd.DataFrame({"z1": [0.0, 1.0, 2.0]}), 5, "guide")
    finding = calibration_finding(found)
    assert (finding.verdict, finding.reading) == (
        "look",
        "Not tested: 3 simulated cells are too few.",
    )
    with pytest.raises(ValueError, match=r"too few ranks of \['z1'\] to draw; available: \[\]"):
        plot_ranks(found)


def test_histogram_of_ranks_by_hand() -> None:
    counts, expected = rank_histogram(np.array([0, 0, 1, 2, 3, 3, 3, 4, 4, 4.0]), 4)
    # Two bins for five ranks: 0, 1, 2 and 3, 4.
    assert counts.tolist() == [4.0, 6.0]
    assert expected.tolist() == [6.0, 4.0]
    with pytest.raises(ValueError, match="too few"):
        rank_histogram(np.zeros(9), 4)


def test_shared_parameters_stay_as_they_are() -> None:
    vae, data = linear_vae(), linear_data(2, 2)
    with evaluating(vae):
        before = vae.model.likelihood.log_scale.clone()
        calibrate(Query(vae, data, np.tile(np.arange(4), 5)), 9)
    assert torch.equal(vae.model.likelihood.log_scale, before)


@pytest.mark.slow
def test_a_latent_library_size_is_that_of_quadrature() -> None:
    """With a decoder that ignores z and s, the posterior of log l has one dimension."""
    vae = make_vae(likelihood=Poisson(), n_layers_decoder=0, latent_library=True).double()
    head = vae.model.likelihood.layers["scale"]
    with torch.no_grad():
        head.weight.zero_()
    totals = np.array([4.0, 60.0])
    counts = np.zeros((2, N_GENES))
    counts[:, 0] = totals
    batch = CellBatch(condition=torch.tensor([0, 1]), x=torch.as_tensor(counts))
    torch.manual_seed(0)
    moments = refine(vae, batch, Refinement(n_steps=60)).marginals()  # from an untrained encoder
    draws = sample_nuts(vae, batch, moments, NutsSettings(n_draws=80, n_warmup=40))
    found = draws.summary("library")
    log_l = np.linspace(-3, 9, 4001)
    for cell, total in enumerate(totals):
        log_density = scipy.stats.norm.logpdf(log_l, 3.0, np.sqrt(0.3))
        log_density += scipy.stats.poisson.logpmf(total, np.exp(log_l))
        density = np.exp(log_density - log_density.max())
        density /= density.sum()
        mean = (density * log_l).sum()
        sd = np.sqrt((density * (log_l - mean) ** 2).sum())
        assert found["mean"][cell, 0] == pytest.approx(mean, abs=0.4 * sd)
        assert found["sd"][cell, 0] == pytest.approx(sd, rel=0.3)
        fitted_mean, fitted_variance = (m[cell, 0].item() for m in moments["library"])
        assert fitted_mean == pytest.approx(mean, abs=0.2 * sd)
        assert np.sqrt(fitted_variance) == pytest.approx(sd, rel=0.15)
    assert draws.summary("z")["mean"].abs().max() < 0.4  # its prior
    assert draws.values["s"][:, :, 0].isnan().all()
