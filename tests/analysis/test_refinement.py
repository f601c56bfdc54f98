"""Refined posteriors, where the posterior has a closed form, and the program that draws them."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers import N_GENES, make_vae
from linear_gaussian import N_Z, exact_log_likelihood, exact_posterior, linear_data, linear_vae
from linear_gaussian import loadings as loadings_of
from pyro import poutine

from pyro_contrastive import CellBatch, ContrastiveGuide, Gaussian, NormalizingFlowPrior, Poisson
from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.analysis import refined_cells
from pyro_contrastive.analysis.likelihood import all_log_weights
from pyro_contrastive.analysis.natural_gradient import State
from pyro_contrastive.analysis.prior_widths import prior_widths
from pyro_contrastive.analysis.refined_cells import RefinedCells
from pyro_contrastive.analysis.refined_posterior import RefinedGuide, RefinedPosterior, Sites
from pyro_contrastive.analysis.refinement import Refinement, refine
from pyro_contrastive.analysis.refinement_start import guide_moments, widened
from pyro_contrastive.analysis.runs import draw_posterior
from pyro_contrastive.model import CELLS


def skewed(n_background=3, n_target=4):
    """A model whose latents are correlated in the posterior, an untrained encoder, and cells."""
    vae = linear_vae(orthogonal=False, exact=False)
    data = linear_data(n_background, n_target)
    return vae, data.cells(np.arange(n_background + n_target), dtype=torch.float64)


def test_the_whole_posterior_of_a_linear_model_is_found() -> None:
    vae, batch = skewed()
    found = refine(vae, batch, Refinement(n_steps=100))
    mean, covariance = exact_posterior(loadings_of(False), batch)
    target = batch.is_target
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    correlation = covariance / (sd.unsqueeze(-1) * sd.unsqueeze(-2))
    assert (correlation[target] - torch.eye(5)).abs().max() > 0.5  # more than a mean field can do
    ours = found.factor @ found.factor.mT
    for cells, n in ((target, 5), (~target, N_Z)):  # a background cell has no s
        error = (found.mean - mean)[cells, :n] / sd[cells, :n]
        assert error.abs().max() < 0.02
        off = ours[cells, :n, :n] / (sd.unsqueeze(-1) * sd.unsqueeze(-2))[cells, :n, :n]
        np.testing.assert_allclose(off, correlation[cells, :n, :n], atol=0.05)
    assert found.is_refined.all()
    assert not found.failed.any()
    exact = exact_log_likelihood(loadings_of(False), batch)
    with evaluating(vae):
        weights = all_log_weights(vae, batch, 20, RefinedGuide(vae.guide, found))
    np.testing.assert_allclose(weights, exact[:, None].expand(-1, 20), atol=0.3)


def test_the_usual_steps_close_nearly_all_of_the_gap() -> None:
    vae, batch = skewed()
    exact = exact_log_likelihood(loadings_of(False), batch)
    found = refine(vae, batch)
    with evaluating(vae):
        gaps = [
            exact - all_log_weights(vae, batch, 200, guide).mean(1)
            for guide in (vae.guide, RefinedGuide(vae.guide, found))
        ]
    assert gaps[0].min() > 0.5
    assert gaps[1].abs().max() < 0.02


def test_a_guide_that_is_sure_and_wrong_does_not_hold_refinement_back() -> None:
    data = linear_data(3, 4)
    vae = linear_vae(width=0.01, shift=-5.0)
    batch = data.cells(np.arange(7), dtype=torch.float64)
    exact, covariance = exact_posterior(loadings_of(True), batch)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    found = refine(vae, batch)
    there = torch.ones_like(sd, dtype=torch.bool)
    there[~batch.is_target, N_Z:] = False
    assert ((found.mean - exact) / sd)[there].abs().max() < 0.05
    ratio = found.factor.square().sum(-1).sqrt() / sd
    np.testing.assert_allclose(ratio[there], 1.0, atol=0.05)
    encoded = guide_moments(vae, batch)["s"]  # of a background cell it is not widened either
    for ours, theirs in zip(found.marginals()["s"], encoded, strict=True):
        torch.testing.assert_close(ours[~batch.is_target], theirs[~batch.is_target])


def test_a_start_is_widened_where_it_is_narrow_and_keeps_its_correlations() -> None:
    start = np.array([[0.04, 0.03, 0.0], [0.03, 0.09, 0.0], [0.0, 0.0, 4.0]])
    factor = torch.as_tensor(np.linalg.cholesky(start)).expand(2, 3, 3)
    never = torch.zeros(2, dtype=torch.bool)
    free = torch.tensor([[True, True, True], [True, False, True]])
    state = State(torch.zeros(2, 3).double(), factor, never)
    wide = widened(state, torch.tensor([1.0, 2.0, 1.0]), free).factor
    covariance = (wide @ wide.mT).numpy()
    sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    np.testing.assert_allclose(sd, [[0.7, 1.4, 2.0], [0.7, 0.3, 2.0]], rtol=1e-6)
    np.testing.assert_allclose(covariance[:, 0, 1] / (sd[:, 0] * sd[:, 1]), 0.5, rtol=1e-6)


def widths_under(prior, **given):
    vae = make_vae(n_background_latent=2, n_salient_latent=2, background_prior=prior, **given)
    batch = CellBatch(condition=torch.tensor([0, 1, 1]), x=torch.ones(3, N_GENES))
    sites = Sites(
        {"z": 2, "s": 2} | ({"library": 1} if given else {}),
        frozenset({"library"} if given else ()),
    )
    with evaluating(vae):
        return prior_widths(vae, batch, sites)


def test_widths_of_priors() -> None:
    laplace = widths_under(dist.Laplace(1.0, 3.0), latent_library=True)
    expected = [*[3 * np.sqrt(2)] * 2, 1.0, 1.0, np.sqrt(0.3)]  # of the logarithm of the library
    np.testing.assert_allclose(laplace, np.tile(expected, (3, 1)), rtol=1e-5)
    for unknown in (NormalizingFlowPrior(2), dist.Cauchy(0.0, 1.0)):
        np.testing.assert_array_equal(widths_under(unknown), np.ones((3, 4)))


def test_of_a_background_cell_the_salient_latent_stays_the_encoders() -> None:
    vae, batch = skewed()
    encoded = guide_moments(vae, batch)["s"]
    found = refine(vae, batch)
    background = ~batch.is_target
    for ours, theirs in zip(found.marginals()["s"], encoded, strict=True):
        torch.testing.assert_close(ours[background], theirs[background])
        assert not torch.allclose(ours[~background], theirs[~background], atol=0.01)
    assert (found.factor[background, N_Z:, :N_Z] == 0).all()


def test_a_cell_has_the_same_posterior_in_any_company_and_no_seed_is_used() -> None:
    vae, batch = skewed(5, 6)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    together = refine(vae, batch)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    chosen = torch.tensor([9, 2, 4])
    some = refine(vae, batch.take(chosen))
    torch.testing.assert_close(some.mean, together.mean[chosen], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(some.factor, together.factor[chosen], rtol=1e-7, atol=1e-9)


def test_the_model_is_left_as_it_was() -> None:
    vae, batch = skewed()
    frozen = next(iter(vae.model.parameters()))
    frozen.requires_grad_(False)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    vae.train()
    refine(vae, batch, Refinement(5))
    assert vae.training
    assert not frozen.requires_grad
    assert all(p.requires_grad and p.grad is None for p in vae.parameters() if p is not frozen)
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not pyro.get_param_store().keys()


def random_posterior(sites, n_cells):
    generator = torch.Generator().manual_seed(1)
    n = sites.n_latents
    factor = torch.randn(n_cells, n, n, generator=generator).double().tril()
    factor.diagonal(dim1=-2, dim2=-1).abs_().add_(0.3)
    mean = torch.randn(n_cells, n, generator=generator).double()
    yes = torch.ones(n_cells, dtype=torch.bool)
    return RefinedPosterior(sites, mean, factor, yes, ~yes)


def test_draws_and_density_are_those_of_a_multivariate_normal() -> None:
    vae = make_vae(
        likelihood=Poisson(), n_background_latent=2, n_salient_latent=1, latent_library=True
    ).double()
    x = torch.as_tensor(np.random.default_rng(0).poisson(3.0, (2, N_GENES)).astype(float))
    batch = CellBatch(condition=torch.tensor([1, 1]), x=x)
    posterior = random_posterior(Sites({"z": 2, "s": 1, "library": 1}, frozenset({"library"})), 2)
    with evaluating(vae):
        torch.manual_seed(0)
        trace = draw_posterior(vae, batch, 20_000, guide=RefinedGuide(vae.guide, posterior))
    trace.compute_log_prob()
    value = {name: trace.nodes[name]["value"] for name in ("z", "s", "library")}
    vector = torch.cat([value["z"], value["s"], value["library"].log()], -1).numpy()
    log_prob = sum(trace.nodes[name]["log_prob"] for name in value).numpy()
    covariance = (posterior.factor @ posterior.factor.mT).numpy()
    for cell in range(2):
        normal = scipy.stats.multivariate_normal(posterior.mean[cell].numpy(), covariance[cell])
        jacobian = vector[:50, cell, 3]  # of the logarithm
        expected = normal.logpdf(vector[:50, cell]) - jacobian
        np.testing.assert_allclose(log_prob[:50, cell], expected, rtol=1e-9)
        found = np.cov(vector[:, cell].T)
        scale = np.sqrt(np.outer(np.diag(covariance[cell]), np.diag(covariance[cell])))
        np.testing.assert_allclose(found / scale, covariance[cell] / scale, atol=0.03)
    means = value["library"][:, :, 0].mean(0)
    np.testing.assert_allclose(posterior.means("library")[:, 0], means, rtol=0.2)


class OwnProgram(ContrastiveGuide):
    """A guide in which s depends on z: what `encode` returns is not the posterior."""

    def forward(self, batch: CellBatch) -> None:
        moments = self.encode(batch)
        with pyro.plate(CELLS, len(batch), dim=-1):
            z = pyro.sample("z", self.z_dist(*moments["z"]))
            mean, variance = moments["s"]
            pyro.sample("s", self.s_dist(mean + 5.0 + z[..., :2], variance))


def own_program():
    vae, batch = skewed()
    guide = OwnProgram.__new__(OwnProgram)
    guide.__dict__ = dict(vae.guide.__dict__)
    vae.guide = guide
    return vae, batch


def test_refinement_starts_at_the_draws_of_a_program_of_ones_own() -> None:
    vae, batch = own_program()
    mean, _ = guide_moments(vae, batch)["s"]
    with evaluating(vae):
        encoded = vae.guide.encode(batch)
    expected = encoded["s"][0] + 5.0 + encoded["z"][0][:, :2]
    np.testing.assert_allclose(mean, expected, atol=0.4)
    found = refine(vae, batch, Refinement(60))
    exact, covariance = exact_posterior(loadings_of(False), batch)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    target = batch.is_target
    assert ((found.mean - exact) / sd)[target].abs().max() < 0.1


def test_where_the_guide_is_kept_its_program_draws() -> None:
    vae, batch = own_program()
    found = refine(vae, batch)
    kept = torch.tensor([True, False, True, False, False, True, False])
    some = RefinedPosterior(found.sites, found.mean, found.factor, ~kept, found.failed)
    with evaluating(vae):
        torch.manual_seed(0)
        trace = draw_posterior(vae, batch, 4, guide=RefinedGuide(vae.guide, some))
        trace.compute_log_prob()
        own = poutine.replay(vae.guide, trace=trace)
        by_guide = draw_posterior(vae, batch, 4, guide=own)
        refined = poutine.replay(RefinedGuide(vae.guide, found), trace=trace)
        by_refined = draw_posterior(vae, batch, 4, guide=refined)
    for other in (by_guide, by_refined):
        other.compute_log_prob()
    for site in ("z", "s"):
        log_prob = trace.nodes[site]["log_prob"]
        torch.testing.assert_close(log_prob[:, kept], by_guide.nodes[site]["log_prob"][:, kept])
        torch.testing.assert_close(log_prob[:, ~kept], by_refined.nodes[site]["log_prob"][:, ~kept])


class NoDensity(dist.Normal):
    """A normal whose density is NaN above 100."""

    def log_prob(self, value):
        return torch.where(value > 100, torch.nan, super().log_prob(value))


class OftenNaN(Gaussian):
    """A likelihood without a density for values above 100."""

    def forward(self, heads, library):
        normal = super().forward(heads, library).base_dist
        return NoDensity(normal.loc, normal.scale).to_event(1)


def test_a_cell_without_a_finite_density_keeps_the_guides_posterior_and_is_named() -> None:
    vae = make_vae(likelihood=OftenNaN(log1p=False), n_layers_decoder=0).double()
    x = torch.as_tensor(np.random.default_rng(0).normal(size=(4, N_GENES)))
    x[2, 0] = 1000.0
    batch = CellBatch(condition=torch.tensor([0, 1, 1, 0]), x=x)
    with pytest.warns(UserWarning, match="failed for 1 cells, the first of them number 32"):
        guide = RefinedCells(vae, 50).guide(batch, np.array([30, 31, 32, 33]))
    assert guide.posterior.failed.tolist() == [False, False, True, False]
    assert guide.posterior.is_refined.tolist() == [True, True, False, True]
    encoded = guide_moments(vae, batch)
    for site, (mean, variance) in guide.posterior.marginals().items():
        torch.testing.assert_close(mean[2], encoded[site][0][2])
        torch.testing.assert_close(variance[2], encoded[site][1][2])
    others = refine(vae, batch.take(torch.tensor([0, 1, 3])))
    torch.testing.assert_close(guide.posterior.mean[[0, 1, 3]], others.mean)


def test_a_posterior_is_made_once_and_found_again(monkeypatch) -> None:
    monkeypatch.setattr(refined_cells, "CELLS_AT_A_TIME", 2)
    vae, batch = skewed(6, 6)
    store = RefinedCells(vae, 20)
    made = []

    def guide(cells):
        before = store.made()[0]
        found = store.guide(batch.take(torch.as_tensor(cells)), np.asarray(cells))
        made.append(np.setdiff1d(store.made()[0], before).tolist())
        return found.posterior

    first = guide([3, 1, 8])
    again = guide([8, 8, 3])
    mixed = guide([5, 1, 5, 9])
    last = guide([9, 5, 3, 1])
    assert made == [[1, 3, 8], [], [5, 9], []]
    alone = refine(vae, batch)
    for found, cells in (
        (first, [3, 1, 8]),
        (again, [8, 8, 3]),
        (mixed, [5, 1, 5, 9]),
        (last, [9, 5, 3, 1]),
    ):
        torch.testing.assert_close(found.mean, alone.mean[cells])
        torch.testing.assert_close(found.factor, alone.factor[cells])
    cells, posterior = store.made()
    assert cells.tolist() == [1, 3, 5, 8, 9]
    torch.testing.assert_close(posterior.mean, alone.mean[cells])
    assert not len(store.anew().made()[0])


class Scalar(ContrastiveGuide):
    """Draws a latent without an axis of its own."""

    def forward(self, batch: CellBatch) -> None:
        with pyro.plate(CELLS, len(batch), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(batch)), 1.0))


def test_latents_that_cannot_be_refined_are_named() -> None:
    vae, batch = skewed()
    guide = Scalar.__new__(Scalar)
    guide.__dict__ = dict(vae.guide.__dict__)
    vae.guide = guide
    with pytest.raises(TypeError, match=r"shape \[cells, latents\]; the site 'z' .* \[7\]"):
        refine(vae, batch)


class Bounded(OwnProgram):
    """A guide of latents between 0 and 1."""

    def forward(self, batch: CellBatch) -> None:
        with pyro.plate(CELLS, len(batch), dim=-1):
            for site, n in (("z", N_Z), ("s", 2)):
                unit = torch.ones(len(batch), n, dtype=torch.float64)
                pyro.sample(site, dist.Beta(unit, unit).to_event(1))


def test_bounded_latents_are_refused() -> None:
    vae, batch = skewed()
    guide = Bounded.__new__(Bounded)
    guide.__dict__ = dict(vae.guide.__dict__)
    vae.guide = guide
    vae.model.z_dist = lambda b: dist.Beta(torch.ones(N_Z).double(), 1.0).to_event(1)
    with pytest.raises(TypeError, match="real or positive numbers; the prior of the site 'z'"):
        refine(vae, batch)


@pytest.mark.parametrize("steps", [0, -1, True, 2.0])
def test_a_number_of_steps_that_is_none(steps) -> None:
    with pytest.raises(ValueError, match="n_steps of a refinement must be a whole number"):
        Refinement(n_steps=steps)
