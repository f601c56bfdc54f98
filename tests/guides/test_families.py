"""Densities of the families against closed forms, and what they can do that others cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from every_guide import OURS
from helpers import N_GENES, make_batch, make_vae
from linear_gaussian import (
    N_S,
    N_Z,
    NOISE,
    exact_log_likelihood,
    exact_posterior,
    loadings,
    set_loadings,
)
from pyro import poutine
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from pyro_contrastive import (
    CellBatch,
    ConditionalGuide,
    ContrastiveGuide,
    ContrastiveVAE,
    FlowGuide,
    FullCovarianceGuide,
    Gaussian,
    LowRankGuide,
    PrivateSalient,
)
from pyro_contrastive.analysis.likelihood import log_weights, losses_of
from pyro_contrastive.analysis.refinement_start import START_WIDTH, guide_normal, widened

SITES = ("z", "s", "library")


def strong(vae: ContrastiveVAE) -> ContrastiveVAE:
    """Make correlations strong, where an untrained guide has next to none."""
    for name, parameter in vae.guide.named_parameters():
        if name.startswith(("correlations.2", "flows")):
            nn.init.normal_(parameter, std=0.5)
    return vae.double().eval()


def cells(n_conditions: int = 2) -> CellBatch:
    batch = make_batch(n_background=3, n_target=5)
    assert batch.x is not None
    condition = torch.where(batch.is_target, 1 + torch.arange(8) % (n_conditions - 1), 0)
    return CellBatch(condition=condition, x=batch.x.double())


def traced(guide: Any, batch: CellBatch) -> Any:
    trace = poutine.trace(guide).get_trace(batch)
    trace.compute_log_prob()
    return trace


def full_correlations(guide: FullCovarianceGuide, numbers: np.ndarray, n: int) -> np.ndarray:
    """Rows of a triangle, filled in order, each of norm 1."""
    factor, rest = np.eye(n), list(numbers)
    for i in range(n):
        for j in range(i):
            factor[i, j] = rest.pop(0)
        factor[i] /= np.linalg.norm(factor[i])
    return factor @ factor.T


def low_rank_correlations(guide: LowRankGuide, numbers: np.ndarray, n: int) -> np.ndarray:
    u = numbers.reshape(n, guide.rank)
    covariance = np.eye(n) + u @ u.T
    widths = np.sqrt(np.diag(covariance))
    return covariance / np.outer(widths, widths)


FACTORS = [(FullCovarianceGuide, full_correlations), (LowRankGuide, low_rank_correlations)]


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(("family", "correlations"), FACTORS)
def test_sites_multiply_to_one_normal_density(family, correlations, positive) -> None:
    torch.manual_seed(0)
    gamma = dist.Gamma(1.0, 1.0)
    priors = {"background_prior": gamma, "salient_prior": gamma} if positive else {}
    vae = strong(make_vae(guide=family(), latent_library=True, **priors))
    batch, guide, seen = cells(), vae.guide, []
    guide.correlations.register_forward_hook(lambda *given: seen.append(given[2].detach()))
    with torch.no_grad():
        trace, moments = traced(guide, batch), guide.encode(batch)
    sizes = [vae.n_background_latent, vae.n_salient_latent, 1]
    for cell, is_target in enumerate(batch.is_target):
        kept = [site for site in SITES if is_target or site != "s"]
        used = np.repeat([site in kept for site in SITES], sizes)
        values = {site: trace.nodes[site]["value"][cell] for site in kept}
        logs = [value.log() for site, value in values.items() if positive or site == "library"]
        real = [values[s].log() if positive or s == "library" else values[s] for s in kept]
        mean, variance = (
            torch.cat([moments[site][i][cell] for site in SITES]).numpy() for i in (0, 1)
        )
        numbers = without_others(family, seen[0][cell].numpy(), used)
        covariance = np.outer(variance, variance) ** 0.5 * correlations(guide, numbers, len(mean))
        expected = multivariate_normal.logpdf(
            torch.cat(real).numpy(), mean[used], covariance[np.ix_(used, used)]
        )
        expected -= float(torch.cat(logs).sum())  # the Jacobian of the exponentials
        found = sum(trace.nodes[site]["log_prob"][cell] for site in kept)
        np.testing.assert_allclose(float(found), expected, rtol=1e-8)


def without_others(family: Any, numbers: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Set to 0 what correlates latents with those that are not used."""
    if family is LowRankGuide:
        return (numbers.reshape(len(used), -1) * used[:, None]).ravel()
    pairs = [used[i] and used[j] for i in range(len(used)) for j in range(i)]
    return numbers * np.array(pairs)


@pytest.mark.parametrize("name", OURS)
def test_the_order_in_which_moments_are_given_does_not_matter(name) -> None:
    torch.manual_seed(0)
    vae, batch = strong(make_vae(guide=OURS[name](), latent_library=True)), cells()
    moments = vae.guide.encode(batch)
    given = [moments, {site: moments[site] for site in reversed(moments)}]
    values = {site: torch.rand_like(mean) for site, (mean, _) in moments.items()}
    found = []
    for order in given:
        program = poutine.condition(vae.guide.draw, data=values)
        trace = poutine.trace(program).get_trace(order, batch)
        found.append(trace.log_prob_sum())
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("site", SITES)
def test_the_density_of_a_flow_has_the_jacobian_of_its_map(site) -> None:
    torch.manual_seed(0)
    batch = cells()
    vae = strong(make_vae(guide=FlowGuide(3), latent_library=True))
    q = traced(vae.guide, batch).nodes[site]["fn"]
    noise = torch.randn(len(batch), q.event_shape[0], dtype=torch.float64)

    def mapped(given: Tensor) -> Tensor:
        for transform in q.transforms:
            given = transform(given)
        return given

    jacobian = torch.autograd.functional.jacobian(mapped, noise)  # [cells, latents, cells, latents]
    own = torch.stack([jacobian[i, :, i] for i in range(len(batch))])
    base = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1)
    expected = base - torch.linalg.slogdet(own).logabsdet
    torch.testing.assert_close(q.log_prob(mapped(noise)), expected)
    off = jacobian.abs().sum((1, 3))
    assert (off - torch.diag(off.diagonal())).max() == 0  # cells do not depend on each other


@pytest.mark.parametrize("family", OURS)
def test_dimensions_that_a_cell_lacks_are_standard_normal_and_apart(family) -> None:
    torch.manual_seed(0)
    prior = PrivateSalient(3, 4)
    vae = strong(make_vae(guide=OURS[family](), salient_prior=prior, n_salient_latent=4))
    batch = cells(n_conditions=3)
    draws = 20_000
    with torch.no_grad():
        trace = poutine.trace(pyro.plate("samples", draws, dim=-2)(vae.guide)).get_trace(batch)
        marginal = vae.guide.marginals(batch)["s"]
    z, s = trace.nodes["z"]["value"], trace.nodes["s"]["value"]
    for cell in (3, 4):  # one of each treatment
        used = prior.used(batch)[cell]
        lacking = s[:, cell, ~used]
        assert torch.equal(marginal[0][cell, ~used], torch.zeros(2).double())
        assert torch.equal(marginal[1][cell, ~used], torch.ones(2).double())
        both = torch.cat([lacking, z[:, cell], s[:, cell, used]], dim=-1)
        correlations = torch.corrcoef(both.T)[:2]
        expected = torch.eye(2, both.shape[-1], dtype=torch.float64)
        torch.testing.assert_close(correlations, expected, atol=6 / draws**0.5, rtol=0)
        torch.testing.assert_close(
            lacking.mean(0), torch.zeros(2).double(), atol=6 / draws**0.5, rtol=0
        )
        torch.testing.assert_close(lacking.var(0), torch.ones(2).double(), atol=0.06, rtol=0)


class Exact(FullCovarianceGuide):
    """The exact posterior of a linear-Gaussian model, as moments and correlations."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", loadings(orthogonal=False))

    def encode(self, batch, only=None):
        mean, covariance = exact_posterior(self.weights, batch)
        self.covariance = covariance
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        found = {"z": (mean[:, :N_Z], variance[:, :N_Z]), "s": (mean[:, N_Z:], variance[:, N_Z:])}
        return found if only is None else {only: found[only]}

    def correlation_factor(self, numbers, there):
        factor = torch.linalg.cholesky(self.covariance)
        return factor / factor.square().sum(-1, keepdim=True).sqrt()


def linear_model(guide: ContrastiveGuide, **kwargs: Any) -> ContrastiveVAE:
    """Model with a linear decoder and a posterior with strong correlations."""
    vae = make_vae(
        likelihood=Gaussian(log1p=False),
        n_layers_decoder=0,
        guide=guide,
        dropout_rate=0.0,
        n_background_latent=N_Z,
        n_salient_latent=N_S,
        **kwargs,
    ).double()
    set_loadings(vae, loadings(orthogonal=False))
    return vae


def simulated(n_cells: int, seed: int = 0) -> CellBatch:
    """Data of that model, half of them background cells."""
    rng = np.random.default_rng(seed)
    condition = np.arange(n_cells) % 2
    latents = rng.normal(size=(n_cells, N_Z + N_S))
    latents[condition == 0, N_Z:] = 0.0
    x = latents @ loadings(orthogonal=False).numpy().T
    x += NOISE * rng.normal(size=(n_cells, N_GENES))
    return CellBatch(condition=torch.as_tensor(condition), x=torch.as_tensor(x))


def test_with_the_exact_posterior_every_draw_has_the_log_likelihood_as_its_elbo() -> None:
    """For background cells too, whose marginal likelihood is that of a model without s."""
    vae, batch = linear_model(Exact()).eval(), simulated(6)
    weights = log_weights(vae, batch, 5)
    expected = exact_log_likelihood(loadings(orthogonal=False), batch)
    torch.testing.assert_close(weights, expected.expand(5, -1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", OURS)
def test_analytic_kl_divergences_have_the_mean_of_those_of_draws(name) -> None:
    """Also where s depends on z: its divergence is then an average over z."""
    torch.manual_seed(0)
    vae, batch = strong(make_vae(guide=OURS[name](), latent_library=True)), cells()
    sums = []
    for analytic in (True, False):
        with torch.no_grad():
            terms = losses_of(vae, batch, 4000, analytic=analytic)
        terms.pop("x")
        sums.append(sum(term.expand(4000, len(batch)) for term in terms.values()))
    error = (sums[0].var(0) + sums[1].var(0)).sqrt() / 4000**0.5
    assert ((sums[0].mean(0) - sums[1].mean(0)).abs() < 6 * error).all()


@pytest.mark.slow
@pytest.mark.parametrize("family", [FullCovarianceGuide, LowRankGuide, FlowGuide, ConditionalGuide])
def test_latents_that_depend_on_each_other_fit_better_than_the_best_without(family) -> None:
    torch.manual_seed(0)
    vae, batch = linear_model(family(), n_hidden=32), simulated(400)
    optimiser = torch.optim.Adam(vae.guide.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 600)
    for _ in range(600):
        optimiser.zero_grad()
        vae.objective(vae.model, vae.guide)(batch).backward()
        optimiser.step()
        scheduler.step()
    vae.eval()
    with torch.no_grad():
        elbo = log_weights(vae, batch, 100).mean(0)
    gap = exact_log_likelihood(loadings(orthogonal=False), batch) - elbo
    target = gap[batch.is_target].mean()
    # The best independent normals: KL = (sum log precision_ii - log det precision) / 2.
    _, covariance = exact_posterior(loadings(orthogonal=False), batch)
    precision = torch.linalg.inv(covariance[batch.is_target][0])
    best = (precision.diagonal().log().sum() - torch.logdet(precision)) / 2
    assert target < best


def test_refinement_starts_with_the_correlations_of_the_guide() -> None:
    """Also where it makes a narrow posterior wider."""
    vae, batch = linear_model(Exact()).eval(), simulated(6)
    with torch.no_grad():
        sites, start = guide_normal(vae, batch)
        mean, covariance = exact_posterior(loadings(orthogonal=False), batch)
        widths = 1.4 / START_WIDTH * torch.ones_like(mean)
        wide = widened(start, widths, torch.ones_like(mean, dtype=torch.bool))
    assert list(sites.widths) == ["z", "s"]
    torch.testing.assert_close(start.mean, mean)
    torch.testing.assert_close(start.factor @ start.factor.mT, covariance)
    wider = wide.factor @ wide.factor.mT
    for one, other in zip(covariance, wider, strict=True):
        sd = other.diagonal().sqrt()
        torch.testing.assert_close(sd, one.diagonal().sqrt().clamp(min=1.4))
        expected = one / one.diagonal().sqrt().outer(one.diagonal().sqrt())
        torch.testing.assert_close(other / sd.outer(sd), expected)
