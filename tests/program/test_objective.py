"""The objective, against scipy, closed forms and finite differences."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers import make_batch, make_vae, salient_kl
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule

from pyro_contrastive import MMD, CellBatch, Penalty, Wasserstein
from pyro_contrastive.model import CELLS
from pyro_contrastive.objective import contrastive_elbo
from pyro_contrastive.sites import cell_weights
from pyro_contrastive.training.plan import kl_weight_at

ELBOS = [Trace_ELBO, TraceMeanField_ELBO]
PARTICLES = [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}]


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("particles", PARTICLES, ids=str)
@pytest.mark.parametrize("penalty", [0.0, 10.0])
@pytest.mark.parametrize("latent_library", [True, False])
def test_loss_differentiable_loss_and_loss_and_grads_agree(
    elbo, particles, penalty, latent_library
) -> None:
    vae = make_vae(
        elbo=elbo,
        elbo_kwargs=particles,
        wasserstein_penalty=penalty,
        latent_library=latent_library,
    ).eval()
    vae.objective.kl_weight = 0.3
    batch = make_batch()
    values, gradients = [], []
    for method in ("loss", "differentiable_loss", "loss_and_grads"):
        pyro.set_rng_seed(7)
        vae.zero_grad()
        value = getattr(vae.objective, method)(vae.model, vae.guide, batch)
        if isinstance(value, torch.Tensor):
            value.backward()
        values.append(float(torch.as_tensor(value).detach()))
        if method != "loss":
            gradients.append([p.grad.clone() for p in vae.parameters()])
    pyro.set_rng_seed(7)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), vae.objective)
    values.append(svi.evaluate_loss(batch))
    assert values == pytest.approx([values[0]] * 4, rel=1e-5)
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def trace_loss_by_scipy(vae, model_trace, guide_trace, batch, kl_weight: float) -> float:
    """-ELBO of one draw from its traced values and parameters, with scipy's densities."""

    def value(trace, site):
        return trace.nodes[site]["value"].detach().double().numpy()

    def normal(trace, site):
        fn = trace.nodes[site]["fn"].base_dist
        loc, scale = fn.loc.detach().double().numpy(), fn.scale.detach().double().numpy()
        return scipy.stats.norm.logpdf(value(guide_trace, site), loc, scale).sum(1)

    kl_z = normal(guide_trace, "z") - normal(model_trace, "z")
    kl_s = normal(guide_trace, "s") - normal(model_trace, "s")
    heads = vae.model.decode(
        guide_trace.nodes["z"]["value"],
        model_trace.nodes["s"]["value"] * batch.is_target[:, None],
        batch,
    )
    rate = (batch.observed_library() * heads["scale"]).detach().double().numpy()
    theta = vae.model.likelihood.log_inverse_dispersion.exp().detach().double().numpy()
    pi = torch.sigmoid(heads["dropout"].detach().double()).numpy()
    x = batch.x.double().numpy()
    nb = scipy.stats.nbinom.pmf(x, theta, theta / (theta + rate))
    recon = -np.log(pi * (x == 0) + (1 - pi) * nb).sum(1)
    target = batch.is_target.numpy()
    per_cell = recon + kl_weight * (kl_z + np.where(target, kl_s, 0.0))
    return per_cell[target].mean() + per_cell[~target].mean()


def test_the_trace_objective_equals_scipys_densities() -> None:
    vae, batch = make_vae().eval(), make_batch()
    vae.objective.kl_weight = 0.3
    ((model_trace, guide_trace),) = vae.objective.traces(vae.model, vae.guide, batch)
    loss = vae.objective.loss_of_traces(model_trace, guide_trace)
    expected = trace_loss_by_scipy(vae, model_trace, guide_trace, batch, 0.3)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


class Conjugate(PyroModule):
    """mu ~ N(0, 1) shared by all cells; z_n ~ N(mu, 1); x_n ~ N(z_n, 1)."""

    def forward(self, batch: CellBatch) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.tensor([0.0]), 1.0).to_event(1))
        with pyro.plate(CELLS, len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(mu, torch.ones(len(batch), 1)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=batch.x)


class MeanField(PyroModule):
    """Independent normals with means m (shared) and a + b x_n."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.m = torch.nn.Parameter(torch.tensor([0.4]))
        self.a = torch.nn.Parameter(torch.tensor([0.2]))
        self.b = torch.nn.Parameter(torch.tensor([0.6]))

    def forward(self, batch: CellBatch) -> None:
        pyro.sample("mu", dist.Normal(self.m, 0.5).to_event(1))
        with pyro.plate(CELLS, len(batch), dim=-1):
            pyro.sample("z", dist.Normal(self.a + self.b * batch.x, 0.7).to_event(1))


def conjugate_loss(m, a, b, x, is_target, data_size, kl_weight):
    """Expected loss of the toy in closed form, as a function of the guide's parameters.

    E[log N(x | z, 1)] etc. of normals: the expectation over mu and z of every quadratic.
    """
    log_2pi = np.log(2 * np.pi)
    mean = a + b * x
    recon = 0.5 * log_2pi + 0.5 * ((x - mean) ** 2 + 0.7**2)
    log_q = -0.5 * log_2pi - np.log(0.7) - 0.5
    log_p = -0.5 * log_2pi - 0.5 * ((mean - m) ** 2 + 0.7**2 + 0.5**2)
    local = recon + kl_weight * (log_q - log_p)
    kl_mu = -np.log(0.5) + 0.5 * (0.5**2 + m**2) - 0.5
    return local[is_target].mean() + local[~is_target].mean() + 2 * kl_mu / data_size


@pytest.mark.parametrize("elbo", ELBOS)
def test_value_and_gradient_of_a_conjugate_model_match_the_closed_form(elbo) -> None:
    x = torch.tensor([[-1.0], [0.3], [2.0], [0.7], [1.5]])
    batch = CellBatch(condition=torch.tensor([0, 0, 1, 1, 1]), x=x)
    model, guide = Conjugate("conjugate_model"), MeanField("conjugate_guide")
    objective = contrastive_elbo(elbo, data_size=50, num_particles=40_000, vectorize_particles=True)
    objective.kl_weight = 0.5
    loss = objective.differentiable_loss(model, guide, batch)
    loss.backward()
    at = [0.4, 0.2, 0.6]
    arguments = (x.numpy().ravel(), batch.is_target.numpy(), 50, 0.5)
    expected = conjugate_loss(*at, *arguments)
    assert float(loss.detach()) == pytest.approx(expected, abs=0.02)
    for i, parameter in enumerate((guide.m, guide.a, guide.b)):
        step = np.eye(3)[i] * 1e-5
        slope = (
            conjugate_loss(*(at + step), *arguments) - conjugate_loss(*(at - step), *arguments)
        ) / 2e-5
        assert float(parameter.grad) == pytest.approx(slope, abs=0.02)


def test_a_global_prior_is_weighted_once_per_data_set() -> None:
    model, guide = Conjugate("weight_model"), MeanField("weight_guide")
    batch = CellBatch(condition=torch.tensor([0, 1]), x=torch.zeros(2, 1))
    kl_mu = -np.log(0.5) + 0.5 * (0.5**2 + 0.4**2) - 0.5
    for data_size in (2, 100, 1000):
        objective = contrastive_elbo(TraceMeanField_ELBO, data_size=data_size)
        objective.loss(model, guide, batch)
        # A pair is two cells: the loss per pair has 2 / data_size of the KL of a shared parameter.
        assert float(objective.terms["kl_mu"]) == pytest.approx(2 * kl_mu / data_size, rel=1e-5)


@pytest.mark.parametrize("weighting", ["population", "proportional"])
def test_mini_batches_share_the_kl_of_a_global_parameter(weighting) -> None:
    model, guide = Conjugate("share_model"), MeanField("share_guide")
    objective = contrastive_elbo(TraceMeanField_ELBO, weighting=weighting)
    kl_mu = -np.log(0.5) + 0.5 * (0.5**2 + 0.4**2) - 0.5
    total = 0.0
    for condition in ([0, 1], [0, 0, 1]):  # of 3 background and 2 target cells
        batch = CellBatch(condition=torch.tensor(condition), x=torch.zeros(len(condition), 1))
        (pair,) = objective.traces(model, guide, batch)
        total += float(objective.parts(*pair, sizes=(3, 2))["kl_mu"].detach())
    assert total == pytest.approx(2 * kl_mu / 5, rel=1e-5)


def shifted(parameter, step, function) -> float:
    """Evaluate a function with one parameter moved, and move it back."""
    original = parameter.clone()
    parameter.add_(step)
    value = float(function())
    parameter.copy_(original)
    return value


@pytest.mark.parametrize("elbo", ELBOS)
def test_gradients_equal_finite_differences(elbo) -> None:
    vae = make_vae(elbo=elbo, wasserstein_penalty=2.0, latent_library=True).double().eval()
    vae.objective.kl_weight = 0.3
    cells = make_batch()
    batch = CellBatch(condition=cells.condition, x=cells.x.double())

    def loss() -> torch.Tensor:
        pyro.set_rng_seed(3)  # common noise
        return vae.objective.differentiable_loss(vae.model, vae.guide, batch)

    loss().backward()
    for name, parameter in vae.named_parameters():
        direction = torch.randn_like(parameter)
        slope = float((parameter.grad * direction).sum())
        with torch.no_grad():
            up, down = (shifted(parameter, step * direction, loss) for step in (1e-6, -1e-6))
        assert slope == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-6), name


def test_kl_weight_zero_leaves_the_likelihood() -> None:
    vae, batch = make_vae(elbo=TraceMeanField_ELBO, wasserstein_penalty=5.0).eval(), make_batch()
    vae.objective.kl_weight = 0.0
    loss = vae.objective.loss(vae.model, vae.guide, batch)
    assert loss == pytest.approx(float(vae.objective.terms["reconstruction_loss"]), rel=1e-6)
    assert vae.objective.terms["kl_z"] > 0  # recorded without the weight


def test_terms_add_up_to_the_loss() -> None:
    vae = make_vae(elbo=TraceMeanField_ELBO, wasserstein_penalty=5.0, latent_library=True).eval()
    vae.objective.kl_weight = 0.25
    loss = vae.objective.loss(vae.model, vae.guide, make_batch())
    terms = {name: float(value) for name, value in vae.objective.terms.items()}
    annealed = terms["kl_z"] + terms["kl_s"] + 5 * terms["wasserstein"]
    total = terms["reconstruction_loss"] + terms["kl_library"] + 0.25 * annealed
    assert loss == pytest.approx(total, rel=1e-5)


def test_annealing_is_linear_and_ends() -> None:
    weights = [kl_weight_at(step, 10, 0.2, 0.8) for step in range(13)]
    assert weights[:3] == pytest.approx([0.2, 0.26, 0.32])
    assert weights[10:] == [0.8, 0.8, 0.8]
    assert kl_weight_at(0, 0) == 1.0


def test_weights_average_each_population() -> None:
    batch = make_batch(2, 6)
    weights = cell_weights(batch, "population")
    assert weights.tolist() == pytest.approx([1 / 2] * 2 + [1 / 6] * 6)
    assert cell_weights(batch, "proportional").tolist() == pytest.approx([2 / 8] * 8)
    of_one = cell_weights(make_batch(0, 4), "population")
    assert of_one.tolist() == pytest.approx([1 / 4] * 4)
    part = cell_weights(batch, "population", (20, 30))
    assert part.tolist() == pytest.approx([1 / 20] * 2 + [1 / 30] * 6)
    assert cell_weights(batch, "proportional", (20, 30)).tolist() == pytest.approx([2 / 50] * 8)
    with pytest.raises(ValueError, match="weighting must be"):
        contrastive_elbo(Trace_ELBO, weighting="typo")


def test_proportional_weighting_counts_every_cell_the_same() -> None:
    vae = make_vae(elbo=TraceMeanField_ELBO, elbo_kwargs={"weighting": "proportional"}).eval()
    batch = make_batch(2, 6)
    pyro.set_rng_seed(1)
    loss = vae.objective.loss(vae.model, vae.guide, batch)
    pyro.set_rng_seed(1)
    total = TraceMeanField_ELBO().loss(vae.model, vae.guide, batch)
    total -= salient_kl(vae, batch)[~batch.is_target].sum().item()
    assert loss == pytest.approx(total * 2 / 8, rel=1e-5)


def test_two_penalties_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        make_vae(penalties=[MMD(1.0), MMD(2.0)])


@pytest.mark.parametrize("name", ["kl_z", "kl_other", "reconstruction_loss", "elbo", "loss"])
def test_penalties_with_the_name_of_a_part_of_the_elbo_are_refused(name) -> None:
    penalty = Constant(1.0)
    penalty.__class__ = type("Renamed", (Constant,), {"name": name})
    with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
        make_vae(penalties=[penalty])


class Constant(Penalty):
    """A penalty of 1."""

    def forward(self, model_trace, guide_trace, batch):
        return guide_trace.nodes["z"]["value"].sum() * 0 + 1.0


@pytest.mark.parametrize("particles", PARTICLES, ids=str)
@pytest.mark.parametrize("elbo", ELBOS)
def test_penalties_enter_once_with_weight_and_annealing(elbo, particles) -> None:
    batch = make_batch()

    def loss(penalties) -> float:
        pyro.set_rng_seed(0)
        vae = make_vae(elbo=elbo, elbo_kwargs=particles, penalties=penalties).eval()
        vae.objective.kl_weight = 0.25
        pyro.set_rng_seed(1)
        return vae.objective.loss(vae.model, vae.guide, batch)

    without = loss([])
    assert loss([Constant(8.0)]) == pytest.approx(without + 2.0, abs=1e-4)
    assert loss([Constant(8.0, annealed=False)]) == pytest.approx(without + 8.0, abs=1e-4)


def test_bad_penalties_and_elbos_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Wasserstein(-1.0)
    with pytest.raises(ValueError, match="TraceMeanField_ELBO"):
        make_vae(elbo=pyro.infer.TraceEnum_ELBO)
