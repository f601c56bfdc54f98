"""Penalties against closed forms, hand computation and independent implementations."""

from __future__ import annotations

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.spatial.distance
import scipy.stats
import torch
from helpers import make_batch, make_vae
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_contrastive import (
    HSIC,
    MMD,
    CellBatch,
    LateSalient,
    NarrowSalient,
    Penalty,
    SalientClassifier,
    ShrinkMeans,
    TotalCorrelation,
    Wasserstein,
)
from pyro_contrastive.penalties import learned
from pyro_contrastive.penalties.learned import another_cell

PARTICLES = [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}]


def traces_with_posterior(mean, variance, batch, leading=()):
    """Make a guide trace whose s has this posterior."""
    fn = dist.Normal(mean.expand(*leading, *mean.shape), variance.sqrt()).to_event(1)
    trace = poutine.Trace()
    trace.add_node("s", name="s", type="sample", fn=fn, value=fn.sample(), infer={})
    return poutine.Trace(), trace


@pytest.mark.parametrize("leading", [(), (4,)])
def test_wasserstein_by_hand(leading) -> None:
    mean = torch.tensor([[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]])
    variance = torch.tensor([[0.5, 0.25], [1.0, 2.0], [7.0, 7.0]])
    batch = CellBatch(condition=torch.tensor([0, 0, 1]))
    value = Wasserstein(10.0)(*traces_with_posterior(mean, variance, batch, leading), batch)
    assert float(value) == pytest.approx(((25 + 0.75) + (1 + 3.0)) / 2)
    none = CellBatch(condition=torch.tensor([1, 1, 1]))
    assert float(Wasserstein(10.0)(*traces_with_posterior(mean, variance, none), none)) == 0.0


def latents_of(batch, **draws):
    """Make a guide trace with these draws."""
    trace = poutine.Trace()
    for name, value in draws.items():
        trace.add_node(name, name=name, type="sample", value=value, infer={})
    return poutine.Trace(), trace


def test_mmd_by_hand() -> None:
    batch = CellBatch(condition=torch.tensor([0, 0, 1]))
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])

    def k(d):
        return sum(np.exp(-d / (2 * f * 2)) for f in (0.25, 0.5, 1, 2, 4))

    expected = (2 * k(0) + 2 * k(1)) / 4 + k(0) - 2 * (k(4) + k(5)) / 2
    value = MMD(3.0)(*latents_of(batch, z=z), batch)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    particles = MMD(3.0)(*latents_of(batch, z=z.expand(4, 3, 2)), batch)
    assert float(particles) == pytest.approx(expected, rel=1e-5)
    for condition in ([0, 0, 0], [1, 1, 1]):
        one_population = CellBatch(condition=torch.tensor(condition))
        assert float(MMD()(*latents_of(one_population, z=z), one_population)) == 0.0
    assert MMD(site="s").name == "mmd_s"


def test_mmd_is_small_for_one_distribution_and_large_for_two() -> None:
    batch = CellBatch(condition=torch.arange(400) // 200)
    z = torch.randn(400, 5)
    same = float(MMD()(*latents_of(batch, z=z), batch))
    shifted_z = z + batch.condition.unsqueeze(-1)
    assert same < 0.1
    assert float(MMD()(*latents_of(batch, z=shifted_z), batch)) > 5 * same


def test_hsic_equals_centred_kernel_alignment_in_numpy() -> None:
    batch = CellBatch(condition=torch.tensor([0, 1, 1, 1, 1]))
    z, s = torch.randn(5, 3), torch.randn(5, 2)

    def centred(x):
        d = scipy.spatial.distance.cdist(x, x, "sqeuclidean")
        median = np.sort(d.ravel())[(d.size - 1) // 2]  # torch takes the lower of two medians
        centring = np.eye(len(x)) - 1 / len(x)
        return centring @ np.exp(-d / (2 * median)) @ centring

    k, other = centred(z[1:].numpy()), centred(s[1:].numpy())
    expected = np.trace(k @ other) / np.sqrt(np.trace(k @ k) * np.trace(other @ other))
    value = HSIC(3.0)(*latents_of(batch, z=z, s=s), batch)
    assert float(value) == pytest.approx(expected, rel=1e-4)
    dependent = HSIC()(*latents_of(batch, z=z, s=2 * z), batch)
    assert float(dependent) == pytest.approx(1.0, rel=1e-5)
    few = CellBatch(condition=torch.tensor([0, 0, 0, 1, 1]))
    assert float(HSIC()(*latents_of(few, z=z, s=s), few)) == 0.0


def test_hsic_is_small_for_independent_draws() -> None:
    batch = CellBatch(condition=torch.ones(300).long())
    z = torch.randn(300, 3)
    independent = HSIC()(*latents_of(batch, z=z, s=torch.randn(300, 2)), batch)
    assert float(independent) < 0.1
    squares = HSIC()(*latents_of(batch, z=z, s=z[:, :2] ** 2), batch)  # uncorrelated, dependent
    assert float(squares) > 4 * float(independent)


ALL = {
    "mmd_z": lambda: MMD(5.0),
    "mmd_s": lambda: MMD(5.0, "s"),
    "hsic": lambda: HSIC(5.0),
    "wasserstein": lambda: Wasserstein(5.0),
    "narrow": lambda: NarrowSalient(5.0),
    "late": lambda: LateSalient(5.0),
    "classifier": lambda: SalientClassifier(5.0, 2),
    "total_correlation": lambda: TotalCorrelation(5.0, 3, 2),
}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("shape", [(5, 7), (0, 5), (5, 0), (1, 1), (3, 2)])
def test_penalties_have_finite_gradients(make, shape) -> None:
    vae = make_vae(penalties=[make()])
    loss = vae.objective(vae.model, vae.guide)(make_batch(*shape))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in vae.parameters())


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_a_constant_latent_has_finite_gradients(make) -> None:
    batch = make_batch(4, 6)
    z, s = torch.randn(10, 3, requires_grad=True), torch.zeros(10, 2, requires_grad=True)
    model_trace, guide_trace = latents_of(batch, z=z, s=s)
    guide_trace.nodes["s"]["fn"] = dist.Normal(s, 1.0).to_event(1)
    value = make()(model_trace, guide_trace, batch)
    value.backward()
    assert value.isfinite()
    assert all(latent.grad is None or latent.grad.isfinite().all() for latent in (z, s))


def test_kernels_see_distances_of_draws_far_from_zero() -> None:
    batch = make_batch(20, 20)
    z, s = torch.randn(40, 3), torch.randn(40, 2)
    for penalty in (MMD(), HSIC()):
        here, far = (float(penalty(*latents_of(batch, z=z + c, s=s), batch)) for c in (0.0, 1e3))
        assert far == pytest.approx(here, rel=2e-3)


def test_mmd_of_s_compares_background_cells_with_zero() -> None:
    batch = CellBatch(condition=torch.tensor([0, 0, 1, 1]))
    s = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0], [-3.0, 1.0]], dtype=torch.float64)

    def k(a, b):
        d = scipy.spatial.distance.cdist(a, b, "sqeuclidean")
        return sum(np.exp(-d / (2 * f * 2)) for f in (0.25, 0.5, 1, 2, 4)).mean()

    b, zero = s[:2].numpy(), np.zeros((2, 2))
    expected = k(b, b) + k(zero, zero) - 2 * k(b, zero)
    penalty = MMD(site="s")
    assert float(penalty(*latents_of(batch, s=s), batch)) == pytest.approx(expected, rel=1e-6)
    moved = s + 7.0 * batch.is_target.unsqueeze(-1)  # target cells have no part in it
    assert float(penalty(*latents_of(batch, s=moved), batch)) == pytest.approx(expected, rel=1e-6)
    at_zero = s * batch.is_target.unsqueeze(-1)
    assert float(penalty(*latents_of(batch, s=at_zero), batch)) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="site must be one of"):
        MMD(site="library")


@pytest.mark.parametrize("leading", [(), (4,)])
def test_narrow_salient_equals_quadrature(leading) -> None:
    mean, variance = torch.tensor([[0.3, -0.1], [9.0, 9.0]]), torch.tensor([[0.5, 0.2], [7.0, 7.0]])
    batch = CellBatch(condition=torch.tensor([0, 1]))
    traces = traces_with_posterior(mean, variance, batch, leading)

    def kl(m, v) -> float:
        q, p = scipy.stats.norm(m, math.sqrt(v)), scipy.stats.norm(0, 0.4)
        integrand = lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x))  # noqa: E731
        return scipy.integrate.quad(integrand, m - 12 * v**0.5, m + 12 * v**0.5)[0]

    expected = kl(0.3, 0.5) + kl(-0.1, 0.2)
    assert float(NarrowSalient(sigma=0.4)(*traces, batch)) == pytest.approx(expected, rel=1e-5)
    none = CellBatch(condition=torch.tensor([1, 1]))
    assert float(NarrowSalient()(*traces, none)) == 0.0
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="sigma must be positive"):
            NarrowSalient(sigma=sigma)


def test_late_salient_lets_go_step_by_step() -> None:
    mean, variance = torch.tensor([[9.0, 9.0], [0.3, -0.1]]), torch.tensor([[7.0, 7.0], [0.5, 0.2]])
    batch = CellBatch(condition=torch.tensor([0, 1]))
    traces = traces_with_posterior(mean, variance, batch, ())
    whole = 0.3**2 + 0.1**2 + 0.5 + 0.2  # of the target cell
    penalty = LateSalient(n_steps=4)
    assert float(penalty.eval()(*traces, batch)) == pytest.approx(whole)
    for left in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        assert float(penalty.eval()(*traces, batch)) == pytest.approx(left * whole)
        assert float(penalty.train()(*traces, batch)) == pytest.approx(left * whole)
    assert float(penalty(*traces, CellBatch(condition=torch.tensor([0, 0])))) == 0.0
    with pytest.raises(ValueError, match="n_steps must be at least 1"):
        LateSalient(n_steps=0)


def test_late_salient_belongs_to_one_model() -> None:
    late = LateSalient()
    make_vae(penalties=[late])
    with pytest.raises(ValueError, match="LateSalient object already belongs"):
        make_vae(penalties=[late])


def test_narrow_salient_of_a_posterior_without_closed_form() -> None:
    batch = CellBatch(condition=torch.zeros(20_000).long())
    fn = dist.LogNormal(torch.full((20_000, 1), -1.0), 0.5).to_event(1)
    _, trace = latents_of(batch, s=fn.sample())
    trace.nodes["s"]["fn"] = fn
    negative_entropy = 1.0 - 0.5 * math.log(2 * math.pi * math.e * 0.25)
    cross_entropy = 0.5 * math.log(2 * math.pi) + 0.5 * math.exp(-2 + 2 * 0.25)
    value = NarrowSalient(sigma=1.0)(poutine.Trace(), trace, batch)
    assert float(value) == pytest.approx(negative_entropy + cross_entropy, abs=0.03)


def test_salient_classifier_is_logistic_regressions_loss() -> None:
    batch = CellBatch(condition=torch.tensor([0, 0, 0, 1, 2]))
    s = torch.randn(5, 2)
    penalty = SalientClassifier(3.0, 2)
    a, b = (p.detach().double().numpy() for p in penalty.classifier.parameters())
    probability = 1 / (1 + np.exp(-(s.double().numpy() @ a.T + b).ravel()))
    expected = -0.5 * (np.log(1 - probability[:3]).mean() + np.log(probability[3:]).mean())
    value = penalty(*latents_of(batch, s=s), batch)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    # The mean over particles, if there are several.
    draws = torch.stack([s, s + 1])
    alone = [float(penalty(*latents_of(batch, s=draw), batch).detach()) for draw in draws]
    both = penalty(*latents_of(batch, s=draws), batch)
    assert float(both.detach()) == pytest.approx(np.mean(alone), rel=1e-5)
    with torch.no_grad():
        penalty.classifier.weight.zero_()
        penalty.classifier.bias.zero_()
    assert float(penalty(*latents_of(batch, s=s), batch).detach()) == pytest.approx(
        math.log(2), rel=1e-6
    )
    one_population = CellBatch(condition=torch.ones(5).long())
    assert float(penalty(*latents_of(one_population, s=s), one_population).detach()) == 0.0
    with pytest.raises(ValueError, match="was made for 2 salient latents; the model has 3"):
        penalty(*latents_of(batch, s=torch.randn(5, 3)), batch)


def test_the_prior_of_means_has_the_precision_of_the_prior_of_latents_by_default() -> None:
    assert ShrinkMeans([3, 4]).weight == 1.0


@pytest.mark.parametrize("n_chosen", [0, 1, 2, 5, 9])
def test_another_cell_is_one_cycle_through_the_chosen(n_chosen) -> None:
    chosen = torch.zeros(9, dtype=torch.bool)
    chosen[torch.randperm(9)[:n_chosen]] = True
    other = another_cell(chosen)
    start = cell = chosen.nonzero()[0].item() if n_chosen else 0
    seen = []
    for _ in range(n_chosen):
        seen.append(cell)
        cell = other[cell].item()
    assert cell == start  # back after n_chosen steps,
    assert sorted(seen) == chosen.nonzero().ravel().tolist()  # with every chosen cell met once
    assert 0 <= other.min() <= other.max() < 9


def test_all_cycles_are_equally_likely() -> None:
    chosen = torch.tensor([True, False, True, True, True])
    found = [tuple(another_cell(chosen)[chosen].tolist()) for _ in range(3000)]
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 6  # (4 - 1)! cycles
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def correlated(n_cells: int, rho: float, n_latent: int = 1):
    """z and s with known mutual information, -n_latent/2 log(1 - rho^2)."""
    z = torch.randn(n_cells, n_latent)
    return z, rho * z + math.sqrt(1 - rho**2) * torch.randn(n_cells, n_latent)


def test_total_correlation_is_the_mean_log_ratio_of_its_discriminator() -> None:
    batch = CellBatch(condition=torch.tensor([0, 1, 1, 2, 0]))
    z, s = torch.randn(5, 3), torch.randn(5, 2)
    penalty = TotalCorrelation(4.0, 3, 2)
    with torch.no_grad():
        probability = torch.sigmoid(penalty.discriminator(torch.cat([z, s], -1)).double()).ravel()
    expected = torch.log(probability / (1 - probability))[[1, 2, 3]].mean()
    value = penalty(*latents_of(batch, z=z, s=s), batch)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    one_population = CellBatch(condition=torch.zeros(5).long())
    assert float(penalty(*latents_of(one_population, z=z, s=s), one_population)) == 0.0
    with pytest.raises(ValueError, match="3 background and 2 salient latents; the model has 3 and"):
        penalty(*latents_of(batch, z=z, s=z), batch)


@pytest.mark.parametrize("size", ["n_background_latent", "n_salient_latent", "n_hidden", "gain"])
def test_total_correlation_refuses_sizes_that_are_not_positive(size) -> None:
    with pytest.raises(ValueError, match=f"{size} must be"):
        TotalCorrelation(**{size: 0})


class MeanLogit(Penalty):
    """The mean logit of a network that is not trained."""

    def __init__(self, network, weight) -> None:
        super().__init__(weight)
        self.network = copy.deepcopy(network).requires_grad_(False)

    def forward(self, model_trace, guide_trace, batch):
        pairs = torch.cat([guide_trace.nodes[site]["value"] for site in "zs"], dim=-1)
        return self.network(pairs[..., batch.is_target, :]).mean()


@pytest.mark.parametrize("particles", PARTICLES, ids=str)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize(("weight", "kl_weight"), [(3.0, 0.25), (3.0, 0.0), (0.0, 1.0)])
def test_each_player_gets_the_gradient_of_its_own_loss(
    elbo, particles, weight, kl_weight, monkeypatch
) -> None:
    other_cell = torch.tensor([0, 1, 2, 3, 4, 7, 5, 6, 9, 11, 8, 10])  # targets are 5 to 11
    monkeypatch.setattr(learned, "another_cell", lambda chosen: other_cell)
    penalty = TotalCorrelation(weight, 3, 2, gain=7.0)
    vae, batch = make_vae(elbo=elbo, elbo_kwargs=particles, penalties=[penalty]), make_batch()
    plain = make_vae(
        elbo=elbo, elbo_kwargs=particles, penalties=[MeanLogit(penalty.discriminator, weight)]
    )
    plain.load_state_dict(vae.state_dict(), strict=False)
    traces = []
    penalty.register_forward_hook(lambda module, args, value: traces.append(args[1]))
    losses = []
    for one in (vae, plain):
        one.model.eval(), one.guide.eval()  # no dropout
        one.objective.kl_weight = kl_weight
        pyro.set_rng_seed(5)
        losses.append(one.objective(one.model, one.guide)(batch))
        losses[-1].backward()
    # The encoders', and the decoder's: as if the discriminator were a fixed function.
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-6)
    for name in ("model", "guide"):
        for parameter, expected in zip(
            getattr(vae, name).parameters(), getattr(plain, name).parameters(), strict=True
        ):
            assert torch.allclose(parameter.grad, expected.grad, rtol=1e-4, atol=1e-6)
    # The discriminator's: those of its cross-entropy, whatever the weights.
    target, entropy = batch.is_target, 0.0
    for trace in traces:
        z, s = (trace.nodes[site]["value"].detach() for site in "zs")
        pairs = torch.stack([torch.cat([z, other], -1) for other in (s, s[..., other_cell, :])])
        logits = penalty.discriminator(pairs[..., target, :])
        labels = torch.zeros_like(logits)
        labels[0] = 1.0
        entropy = entropy + binary_cross_entropy_with_logits(logits, labels) / len(traces)
    expected = torch.autograd.grad(7.0 * entropy, list(penalty.parameters()))
    for parameter, gradient in zip(penalty.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("particles", PARTICLES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_with_an_adversary_all_ways_to_the_loss_agree(particles, training) -> None:
    vae = make_vae(elbo_kwargs=particles, penalties=[TotalCorrelation(5.0, 3, 2)])
    vae.train(training)
    vae.guide.eval(), vae.model.eval()
    values = []
    for method in ("loss", "differentiable_loss", "loss_and_grads"):
        pyro.set_rng_seed(7)
        values.append(
            float(
                torch.as_tensor(
                    getattr(vae.objective, method)(vae.model, vae.guide, make_batch_7())
                ).detach()
            )
        )
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def make_batch_7() -> CellBatch:
    """Return the same cells, whatever the seed, and leave it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batch = make_batch()
    pyro.set_rng_seed(7)
    return batch


def test_evaluating_neither_trains_nor_draws() -> None:
    vae = make_vae(penalties=[TotalCorrelation(5.0, 3, 2)]).eval()
    vae.objective.differentiable_loss(vae.model, vae.guide, make_batch()).backward()
    assert all(p.grad is None for p in vae.penalties.parameters())
    z, s = torch.randn(12, 3), torch.randn(12, 2)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    batch = CellBatch(condition=torch.arange(12) % 2)
    vae.penalties[0](*latents_of(batch, z=z, s=s), batch)
    assert torch.equal(torch.get_rng_state(), state)


def by_svi(vae, batch, n_steps) -> None:
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), vae.objective)
    for _ in range(n_steps):
        svi.step(batch)


def by_torch(vae, batch, n_steps) -> None:
    loss = vae.objective(vae.model, vae.guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()


@pytest.mark.parametrize("fit", [by_svi, by_torch])
@pytest.mark.parametrize("make", [ALL["classifier"], ALL["total_correlation"]])
def test_a_penaltys_own_parameters_are_trained_by_pyro_and_by_torch(fit, make) -> None:
    batch = make_batch(20, 20)
    for _ in range(2):  # the second in one process too, and a copy
        vae = copy.deepcopy(make_vae(penalties=[make()]))
        before = [p.detach().clone() for p in vae.penalties.parameters()]
        fit(vae, batch, 3)
        after = list(vae.penalties.parameters())
        assert all(not torch.equal(b, a) for b, a in zip(before, after, strict=True))


def fit_discriminator(rho: float, n_latent: int, n_steps: int) -> float:
    """Value, on new draws, of a penalty trained by its own loss."""
    penalty = TotalCorrelation(1.0, n_latent, n_latent)
    optimizer = torch.optim.Adam(penalty.parameters(), lr=3e-3, eps=0.01)  # train's eps
    batch = CellBatch(condition=torch.arange(600).clamp(max=1))
    for _ in range(n_steps):
        z, s = correlated(600, rho, n_latent)
        optimizer.zero_grad()
        penalty.own_loss(*latents_of(batch, z=z, s=s), batch).backward()
        optimizer.step()
    many = CellBatch(condition=torch.ones(20_000).long())
    z, s = correlated(20_000, rho, n_latent)
    return float(penalty(*latents_of(many, z=z, s=s), many))


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_total_correlation_of_correlated_normals(rho) -> None:
    truth = -0.5 * math.log(1 - rho**2)  # 0 and 0.511
    assert fit_discriminator(rho, 1, 400) == pytest.approx(truth, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(("rho", "n_latent"), [(0.0, 3), (0.6, 3), (0.9, 1)])
def test_total_correlation_of_correlated_normals_closely(rho, n_latent) -> None:
    truth = -0.5 * n_latent * math.log(1 - rho**2)  # 0, 0.669 and 0.830
    assert fit_discriminator(rho, n_latent, 1500) == pytest.approx(truth, abs=0.06)
