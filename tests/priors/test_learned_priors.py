"""Learned priors, against numpy, finite differences and Monte-Carlo averages."""

from __future__ import annotations

import copy
import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import scipy.special
import scipy.stats
import torch
from helpers import N_GENES, make_batch, make_vae
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule

from pyro_contrastive import CellBatch, ContrastiveVI
from pyro_contrastive.components.component import component_from_spec
from pyro_contrastive.model import CELLS
from pyro_contrastive.objective import contrastive_elbo
from pyro_contrastive.penalties import ShrinkMeans
from pyro_contrastive.priors import (
    MixtureOfGaussians,
    NormalizingFlowPrior,
    PerConditionNormal,
    SparseSalient,
    VampPrior,
)
from pyro_contrastive.sites import site_losses
from pyro_contrastive.testing import SimulationSettings, simulate

ELBOS = [Trace_ELBO, TraceMeanField_ELBO]
PARTICLES = [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}]
MAKERS = {
    "mixture": lambda n_latent: MixtureOfGaussians(n_latent, 4),
    "vamp": lambda _: VampPrior.from_counts(make_batch().x.numpy(), 4),
    "flow": lambda n_latent: NormalizingFlowPrior(n_latent, n_hidden=8),
    "sparse": SparseSalient,
    "condition": lambda n_latent: PerConditionNormal(2, n_latent),
}


def moved(prior):
    """Move a prior's parameters away from where they start."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return prior


def make_with(name, **kwargs):
    """Make a module with the prior for both latents."""
    maker = MAKERS[name]
    return make_vae(background_prior=moved(maker(3)), salient_prior=moved(maker(2)), **kwargs)


def mixture_by_numpy(weights, means, scales, x):
    """Log-density of a mixture of diagonal normals at ``[points, latents]``."""
    each = scipy.stats.norm.logpdf(x[:, None], means, scales).sum(-1)
    return scipy.special.logsumexp(each + np.log(weights), axis=1)


def test_mixture_density_equals_numpys() -> None:
    prior, x = moved(MixtureOfGaussians(3, 4)), torch.randn(6, 3)
    weights = scipy.special.softmax(prior.logits.detach().numpy())
    means, scales = prior.means.detach().numpy(), prior.log_scales.detach().exp().numpy()
    found = prior(make_batch()).log_prob(x).detach().numpy()
    np.testing.assert_allclose(found, mixture_by_numpy(weights, means, scales, x), rtol=1e-5)


def test_a_mixture_starts_about_as_wide_as_a_standard_normal() -> None:
    draws = MixtureOfGaussians(3, 300)(make_batch()).sample((20_000,))
    assert draws.mean(0).abs().max() < 0.2
    assert draws.var(0).numpy() == pytest.approx(np.ones(3), abs=0.2)


def test_vamp_density_is_the_mean_of_the_guides_posteriors() -> None:
    batch = make_batch()
    vae = make_vae(background_prior=VampPrior.from_counts(batch.x, 12)).eval()
    with torch.no_grad():
        mean, variance = vae.guide.encode(batch)["z"]
        x = torch.randn(6, 3)
        found = vae.model.background_prior(batch).log_prob(x).numpy()
    expected = mixture_by_numpy(np.full(12, 1 / 12), mean.numpy(), variance.sqrt().numpy(), x)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_vamp_takes_cells_dense_or_sparse_with_their_covariates() -> None:
    counts, covariates = make_batch().x.numpy(), np.eye(12)
    one = VampPrior.from_counts(counts, 5, covariates=covariates, seed=3)
    other = VampPrior.from_counts(scipy.sparse.csr_matrix(counts), 5, covariates=covariates, seed=3)
    assert torch.equal(one.pseudo_inputs, other.pseudo_inputs)
    chosen = one.covariates.argmax(1).numpy()
    assert len(set(chosen)) == 5
    np.testing.assert_allclose(one.pseudo_inputs.detach(), np.log1p(counts[chosen]), rtol=1e-6)
    with pytest.raises(ValueError, match="20 pseudo-inputs cannot be taken from 12 cells"):
        VampPrior.from_counts(counts, 20)


def test_vamp_works_with_batch_correction() -> None:
    batch = make_batch(n_batch=2)
    columns = make_vae(n_batch=2).guide.covariates(batch, like=batch.x)
    prior = VampPrior.from_counts(batch.x, 4, covariates=columns)
    vae = make_vae(n_batch=2, salient_prior=prior)
    vae.objective(vae.model, vae.guide)(batch).backward()
    assert prior.pseudo_inputs.grad.any()


def test_vamp_neither_owns_nor_disturbs_the_encoder() -> None:
    prior = VampPrior.from_counts(make_batch().x, 4)
    with pytest.raises(RuntimeError, match=r"bind\(vae\.guide\.z_encoder\)"):
        prior(make_batch())
    vae = make_vae(background_prior=prior)
    vae.sample(3, library=9.0)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    vae.train()
    first, second = (prior(make_batch()).log_prob(torch.ones(3)) for _ in range(2))
    assert torch.equal(first, second)  # no dropout
    assert all(m.training for m in vae.modules())
    assert vae.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    copied = copy.deepcopy(vae)
    assert copied.model.background_prior._bound[0] is copied.guide.z_encoder


def test_flow_density_integrates_to_one() -> None:
    prior = moved(NormalizingFlowPrior(2, n_hidden=8)).double()
    axis = torch.linspace(-20, 20, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = prior(make_batch()).log_prob(grid).exp()
    assert float(density.sum()) * (40 / 800) ** 2 == pytest.approx(1.0, abs=1e-3)


def test_flow_density_is_the_change_of_variables() -> None:
    prior = moved(NormalizingFlowPrior(3, n_flows=3, n_hidden=8)).double()
    flow, noise = prior(make_batch()), torch.randn(3, dtype=torch.float64)

    def push(value):
        for transform in flow.transforms:
            value = transform(value)
        return value.detach()

    steps = 1e-5 * torch.eye(3, dtype=torch.float64)
    jacobian = np.array([((push(noise + h) - push(noise - h)) / 2e-5).numpy() for h in steps])
    _, log_det = np.linalg.slogdet(jacobian)
    expected = scipy.stats.norm.logpdf(noise.numpy()).sum() - log_det
    assert float(flow.log_prob(push(noise)).detach()) == pytest.approx(expected, abs=1e-6)


def test_flow_remembers_nothing() -> None:
    prior = moved(NormalizingFlowPrior(2, n_hidden=8))
    flow = prior(make_batch())
    with torch.no_grad():
        z = flow.sample((4,))
    before = flow.log_prob(z)
    before.sum().backward()  # drawn without gradient, but the density has one
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prior.parameters())
    moved(prior)
    assert not torch.allclose(flow.log_prob(z), before)
    copy.deepcopy(prior)


def test_flow_starts_near_a_standard_normal() -> None:
    x = torch.randn(100, 4)
    found = NormalizingFlowPrior(4)(make_batch()).log_prob(x)
    expected = dist.Normal(0.0, 1.0).log_prob(x).sum(-1)
    assert float((found - expected).detach().abs().mean()) < 0.5


def test_per_condition_density_and_shapes() -> None:
    batch = CellBatch(condition=torch.tensor([2, 0, 1]))
    prior, x = moved(PerConditionNormal(3, 2)), torch.randn(3, 2)
    found = prior(batch)
    assert (found.batch_shape, found.event_shape) == ((3,), (2,))
    means = prior.means.detach()[[2, 0, 1]].numpy()
    expected = scipy.stats.norm.logpdf(x.numpy(), means).sum(1)
    np.testing.assert_allclose(found.log_prob(x).detach(), expected, rtol=1e-5)


@pytest.mark.parametrize("particles", PARTICLES, ids=str)
@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("name", MAKERS)
def test_every_parameter_gets_a_gradient(name, elbo, particles) -> None:
    vae = make_with(name, elbo=elbo, elbo_kwargs=particles)
    loss = vae.objective(vae.model, vae.guide)(make_batch())
    loss.backward()
    assert loss.isfinite()
    for key, parameter in vae.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if "_prior" in key:
            assert parameter.grad.any(), key


@pytest.mark.slow
@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("name", MAKERS)
def test_gradients_equal_finite_differences(name, elbo) -> None:
    vae = make_with(name, elbo=elbo).double().eval()
    cells = make_batch()
    batch = CellBatch(condition=cells.condition, x=cells.x.double())

    def loss() -> torch.Tensor:
        pyro.set_rng_seed(3)  # common noise
        return vae.objective.differentiable_loss(vae.model, vae.guide, batch)

    loss().backward()
    checked = [(k, p) for k, p in vae.named_parameters() if "_prior" in k or "_encoder" in k]
    assert len(checked) > 10
    for key, parameter in checked:
        direction, kept = torch.randn_like(parameter), parameter.detach().clone()
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.copy_(kept + step * direction)
                values.append(float(loss()))
                parameter.copy_(kept)
        slope = float((parameter.grad * direction).sum())
        expected = (values[0] - values[1]) / 2e-6
        assert slope == pytest.approx(expected, rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("name", ["mixture", "vamp", "flow"])
def test_the_sampled_kl_averages_to_the_monte_carlo_kl(name) -> None:
    vae, batch = make_with(name).eval(), make_batch()
    objective = contrastive_elbo(TraceMeanField_ELBO, num_particles=4000, vectorize_particles=True)
    with torch.no_grad():
        ((model_trace, guide_trace),) = objective.traces(vae.model, vae.guide, batch)
        with pytest.raises(NotImplementedError):
            torch.distributions.kl_divergence(
                guide_trace.nodes["z"]["fn"], model_trace.nodes["z"]["fn"]
            )
        found = site_losses(model_trace, guide_trace, analytic=True)["z"].mean(0)
        mean, variance = vae.guide.encode(batch)["z"]
        draws = mean + variance.sqrt() * torch.randn(4000, *mean.shape)
        log_q = scipy.stats.norm.logpdf(draws, mean, variance.sqrt()).sum(-1)
        each = log_q - vae.model.background_prior(batch).log_prob(draws).numpy()
    error = each.std(0) / np.sqrt(4000)
    assert (np.abs(found.numpy() - each.mean(0)) < 6 * error + 1e-3).all()


@pytest.mark.parametrize("name", MAKERS)
def test_drawing_from_the_model(name) -> None:
    drawn = make_with(name).sample(5, library=30.0, return_latents=True, seed=0)
    assert drawn["x"].shape == (5, N_GENES)
    assert drawn["z"].shape == (5, 3)
    double = MAKERS[name](3).double()
    if not isinstance(double, VampPrior):
        value = double(make_batch()).sample()
        assert value.dtype == torch.float64
        assert double(make_batch()).log_prob(value).dtype == torch.float64


@pytest.mark.parametrize("name", MAKERS)
def test_priors_survive_being_written_down(name) -> None:
    prior = moved(MAKERS[name](3))
    again = component_from_spec(json.loads(json.dumps(prior.spec())), "prior")
    again.load_state_dict(prior.state_dict())
    if name == "vamp":
        for p in (prior, again):
            p.bind(make_vae_encoder())
    x, batch = torch.randn(12, 3), make_batch()
    assert torch.equal(again(batch).log_prob(x), prior(batch).log_prob(x))


def make_vae_encoder():
    """Make the same encoder each time."""
    pyro.set_rng_seed(5)
    return make_vae().guide.z_encoder


@pytest.mark.parametrize("name", MAKERS)
def test_fitted_models_with_the_prior_are_saved_and_loaded(name, tmp_path) -> None:
    adata = simulate(SimulationSettings(n_background=20, n_target=20, n_genes=N_GENES))
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    model = ContrastiveVI(
        adata,
        n_hidden=8,
        n_background_latent=3,
        n_salient_latent=2,
        background_prior=MAKERS[name](3),
        salient_prior=MAKERS[name](2),
        penalties=[ShrinkMeans([20, 20], 2.0)] if name == "condition" else [],
    )
    model.train(max_epochs=2, seed=0, enable_progress_bar=False, accelerator="cpu")
    model.save(tmp_path / "model")
    again = ContrastiveVI.load(tmp_path / "model", adata)
    latents = [m.get_latent_representation() for m in (model, again)]
    np.testing.assert_array_equal(*latents)
    batch, x = make_batch(), torch.randn(12, 3)
    with torch.no_grad():
        one, other = (m.module.model.background_prior(batch).log_prob(x) for m in (model, again))
    assert torch.equal(one, other)
    assert again.module.model.background_prior.spec() == model.module.model.background_prior.spec()


class Toy(PyroModule):
    """x_n ~ N(z_n, 0.1) with the prior of z under test."""

    def __init__(self, prior) -> None:
        super().__init__("toy_model")
        self.prior = prior

    def forward(self, batch: CellBatch) -> None:
        with pyro.plate(CELLS, len(batch), dim=-1):
            z = pyro.sample("z", self.prior(batch))
            pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=batch.x)


class ToyGuide(PyroModule):
    """q(z_n) = N(x_n, 0.1)."""

    def forward(self, batch: CellBatch) -> None:
        with pyro.plate(CELLS, len(batch), dim=-1):
            pyro.sample("z", dist.Normal(batch.x, 0.1).to_event(1))


def fit(prior, batch, penalties=(), steps=300) -> None:
    """Fit a prior to values seen almost without noise."""
    objective = contrastive_elbo(
        TraceMeanField_ELBO, penalties, weighting="proportional", annealed=()
    )
    optim = pyro.optim.Adam({"lr": 0.05})
    svi = SVI(Toy(prior), ToyGuide("toy_guide"), optim, objective)
    for _ in range(steps):
        svi.step(batch)


@pytest.mark.slow
def test_a_mixture_finds_two_clusters() -> None:
    truth = torch.tensor([[-2.0, 1.0], [2.0, 0.0]])
    cluster = (torch.arange(200) < 60).long()
    x = truth[cluster] + 0.3 * torch.randn(200, 2)
    prior = MixtureOfGaussians(2, 2)
    fit(prior, CellBatch(condition=torch.arange(200) % 2, x=x), steps=500)
    order = prior.means[:, 0].argsort()
    assert torch.allclose(prior.means[order], truth, atol=0.15)
    assert torch.allclose(prior.logits.softmax(0)[order], torch.tensor([0.7, 0.3]), atol=0.02)
    assert torch.allclose(prior.log_scales.exp(), torch.full((2, 2), 0.1**0.5), atol=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 25.0])
def test_means_per_condition_are_found_and_shrunk_as_the_closed_form_says(weight) -> None:
    condition = torch.tensor([0] * 100 + [1] * 75 + [2] * 25)
    truth = torch.tensor([[0.0, 0.0], [2.0, -1.0], [0.5, 3.0]])
    x = truth[condition] + torch.randn(200, 2)
    prior = PerConditionNormal(3, 2)
    batch = CellBatch(condition=condition, x=x)
    fit(prior, batch, [ShrinkMeans([100, 75, 25], weight, "z")])
    for code, size in enumerate((100, 75, 25)):
        posterior = x[condition == code].sum(0) / (size + weight)  # w further cells at 0
        assert torch.allclose(prior.means[code], posterior, atol=0.02)
        if not weight:
            assert torch.allclose(prior.means[code], truth[code], atol=4 / size**0.5)


def test_scales_are_the_posteriors_spread_and_bounded_below() -> None:
    prior, x = SparseSalient(3, min_scale=0.3), torch.randn(200, 3) * torch.tensor([2.0, 0.5, 0.0])
    assert torch.allclose(prior.scales, torch.ones(3))
    fit(prior, CellBatch(condition=torch.arange(200) % 2, x=x))
    expected = (x.square().mean(0) + 0.1**2).sqrt().clamp(min=0.3)  # empirical Bayes, closed form
    assert torch.allclose(prior.scales, expected, atol=0.03)


def test_dimensions_in_use_are_those_with_nats() -> None:
    prior = moved(SparseSalient(3))
    scales = prior.scales.detach()
    mean = torch.stack([torch.randn(50), torch.zeros(50), torch.zeros(50)], dim=1)
    variance = torch.stack([torch.tensor(0.01), scales[1] ** 2, scales[2] ** 2]).expand(50, 3)
    ratio = variance[:, 0] / scales[0] ** 2
    expected = 0.5 * (ratio + mean[:, 0] ** 2 / scales[0] ** 2 - 1 - ratio.log()).mean()
    found = prior.nats(mean, variance)
    assert found.tolist() == pytest.approx([float(expected), 0.0, 0.0], abs=1e-4)
    assert prior.active(mean, variance) == [0]


def test_shrinkage_does_not_depend_on_the_mini_batches() -> None:
    vae = make_vae(salient_prior=moved(PerConditionNormal(2, 2)))
    penalty, batch = ShrinkMeans([5, 7]), make_batch()

    def value(cells) -> float:
        objective = contrastive_elbo(Trace_ELBO)
        ((model_trace, guide_trace),) = objective.traces(vae.model, vae.guide, cells)
        return float(penalty(model_trace, guide_trace, cells).detach())

    each = [CellBatch(condition=batch.condition[[i]], x=batch.x[[i]]) for i in range(12)]
    means = vae.model.salient_prior.means.detach()
    expected = float(means.square().sum()) / 12  # w / N times the sum over conditions
    assert value(batch) == pytest.approx(expected, rel=1e-5)
    assert np.mean([value(cell) for cell in each]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixtureOfGaussians(2, 0), "n_components must be at least 1"),
        (lambda: VampPrior(0), "n_input must be at least 1"),
        (lambda: NormalizingFlowPrior(1), "n_latent must be at least 2"),
        (lambda: NormalizingFlowPrior(9, n_hidden=4), "n_hidden must be at least 9"),
        (lambda: SparseSalient(0), "n_latent must be at least 1"),
        (lambda: SparseSalient(2, 0.0), "min_scale must be between"),
        (lambda: PerConditionNormal(0, 2), "n_conditions must be at least 1"),
        (lambda: ShrinkMeans([3, 3], site="x"), "site must be 'z' or 's'"),
        (lambda: ShrinkMeans([3, 3], -1.0), "at least 0"),
    ],
)
def test_wrong_arguments_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
