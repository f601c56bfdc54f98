"""The model and the guide as Pyro programs."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers import N_GENES, make_batch, make_vae, salient_kl
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO

from pyro_contrastive import CellBatch, ContrastiveModel, ContrastiveVAE, NegativeBinomial


def run(vae: ContrastiveVAE, batch: CellBatch) -> tuple[poutine.Trace, poutine.Trace]:
    guide_trace = poutine.trace(vae.guide).get_trace(batch)
    model_trace = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(batch)
    return model_trace, guide_trace


@pytest.mark.parametrize("latent_library", [True, False])
def test_the_sites_are_the_generative_story(latent_library) -> None:
    batch = make_batch()
    model_trace, guide_trace = run(make_vae(latent_library=latent_library), batch)
    latents = {"cells", "z", "s"} | ({"library"} if latent_library else set())  # cells: the plate
    assert set(guide_trace.stochastic_nodes) == latents
    assert set(model_trace.stochastic_nodes) == latents
    sites = model_trace.nodes
    for name, width in {"z": 3, "s": 2, "library": 1, "scale": N_GENES, "rate": N_GENES}.items():
        assert sites[name]["value"].shape == (len(batch), width), name
    assert torch.allclose(sites["scale"]["value"].sum(-1), torch.ones(len(batch)))
    product = sites["library"]["value"] * sites["scale"]["value"]
    assert torch.allclose(sites["rate"]["value"], product)
    assert sites["x"]["is_observed"]
    if not latent_library:
        assert torch.equal(sites["library"]["value"], batch.x.sum(1, keepdim=True))


def test_salient_latents_of_background_cells_change_nothing() -> None:
    vae, batch = make_vae().eval(), make_batch()
    s = torch.randn(len(batch), 2)
    z = torch.zeros(len(batch), 3)

    def scale(s: torch.Tensor) -> torch.Tensor:
        program = poutine.condition(vae.model, {"z": z, "s": s})
        return poutine.trace(program).get_trace(batch).nodes["scale"]["value"]

    changed = (scale(s) != scale(torch.zeros_like(s))).any(1)
    assert torch.equal(changed, batch.is_target)


def test_the_model_gives_the_salient_latent_of_every_cell_its_prior() -> None:
    # A flat prior there would let a sampler that runs the model wander off.
    vae, batch = make_vae(), make_batch()
    trace, _ = run(vae, batch)
    trace.compute_log_prob()
    site = trace.nodes["s"]
    expected = scipy.stats.norm.logpdf(site["value"].detach().numpy()).sum(-1)
    np.testing.assert_allclose(site["log_prob"].detach(), expected, rtol=1e-5)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_the_objective_leaves_out_the_salient_latent_of_background_cells(elbo) -> None:
    vae, batch = make_vae(elbo=elbo).eval(), make_batch()

    def moved(sites, by: torch.Tensor):
        """Move q(s | x) of some cells."""
        mean, variance = sites["s"]
        return sites | {"s": (mean + by.unsqueeze(-1), variance)}

    def loss(by: torch.Tensor) -> float:
        pyro.set_rng_seed(1)

        def guide(batch: CellBatch) -> None:
            vae.guide.draw(moved(vae.guide.encode(batch), by), batch)

        return vae.objective.loss(vae.model, guide, batch)

    nowhere = loss(torch.zeros(len(batch)))
    assert loss(5.0 * ~batch.is_target) == nowhere
    assert abs(loss(5.0 * batch.is_target) - nowhere) > 1.0


def test_removing_the_salient_latent_is_a_do_intervention() -> None:
    vae, batch = make_vae().eval(), make_batch()
    guide_trace = poutine.trace(vae.guide).get_trace(batch)
    without = poutine.do(vae.model, {"s": torch.zeros(len(batch), 2)})

    def scale(program) -> torch.Tensor:
        replayed = poutine.replay(program, trace=guide_trace)
        return poutine.trace(replayed).get_trace(batch).nodes["scale"]["value"]

    changed = (scale(vae.model) - scale(without)).abs().amax(1) > 1e-6
    assert torch.equal(changed, batch.is_target)


@pytest.mark.parametrize("parallel", [True, False])
def test_posterior_predictive_by_pyros_own_predictive(parallel) -> None:
    vae, batch = make_vae(latent_library=True).eval(), make_batch()
    predictive = Predictive(
        poutine.uncondition(vae.model), guide=vae.guide, num_samples=3, parallel=parallel
    )
    drawn = predictive(batch)
    assert drawn["x"].shape == (3, len(batch), N_GENES)
    assert not torch.equal(drawn["x"][0], batch.x)
    assert not torch.equal(drawn["x"][0], drawn["x"][1])


@pytest.mark.parametrize("latent_library", [True, False])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_every_parameter_gets_a_gradient(latent_library, elbo) -> None:
    vae = make_vae(latent_library=latent_library, n_batch=3, n_layers=2, elbo=elbo)
    vae.objective(vae.model, vae.guide)(make_batch(n_batch=3)).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # a bias before batch norm has no effect on anything
        assert parameter.grad.any() or name.endswith("linear.bias"), name


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (0, 1), (1, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("latent_library", [True, False])
def test_few_cells_and_groups_of_unequal_size_have_a_finite_loss(shape, latent_library) -> None:
    vae = make_vae(latent_library=latent_library, wasserstein_penalty=1.0)
    loss = vae.objective(vae.model, vae.guide)(make_batch(*shape))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in vae.parameters())


@pytest.mark.parametrize("latent_library", [True, False])
def test_cells_without_counts_have_a_finite_loss(latent_library) -> None:
    batch = make_batch()
    batch.x[[0, 8]] = 0
    batch = CellBatch(condition=batch.condition, x=batch.x)
    vae = make_vae(latent_library=latent_library)
    loss = vae.objective(vae.model, vae.guide)(batch)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in vae.parameters())


def test_no_cell_is_dropped_when_groups_differ_in_size() -> None:
    vae, batch = make_vae().eval(), make_batch(3, 8)
    objective = vae.objective(vae.model, vae.guide)
    x = batch.x.clone().requires_grad_()
    objective(CellBatch(condition=batch.condition, x=x)).backward()
    assert (x.grad.abs().sum(1) > 0).all()


def test_three_models_in_a_row_all_train_by_svi() -> None:
    batch = make_batch(20, 20)
    losses = []
    for _ in range(3):
        pyro.set_rng_seed(0)
        vae = make_vae(dropout_rate=0.0)
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), vae.objective)
        losses.append([svi.step(batch) for _ in range(30)])
    assert losses[0][-1] < losses[0][0] - 5
    assert losses[1] == pytest.approx(losses[0])
    assert losses[2] == pytest.approx(losses[0])


def test_three_models_in_a_row_all_train_as_torch_modules() -> None:
    batch = make_batch(20, 20)
    ends = []
    for _ in range(3):
        pyro.set_rng_seed(0)
        vae = make_vae(dropout_rate=0.0)
        loss = vae.objective(vae.model, vae.guide)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
        for _ in range(30):
            optimizer.zero_grad()
            value = loss(batch)
            value.backward()
            optimizer.step()
        ends.append(float(value.detach()))
    assert ends[1] == pytest.approx(ends[0])
    assert ends[2] == pytest.approx(ends[0])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_copies_of_a_model_train_on_their_own(clone) -> None:
    batch = make_batch()
    vae = make_vae()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), vae.objective)
    svi.step(batch)
    copied = clone(vae)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    svi = SVI(copied.model, copied.guide, pyro.optim.Adam({"lr": 0.01}), copied.objective)
    svi.step(batch)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    moved = [n for n, p in copied.named_parameters() if not torch.equal(p, before[n])]
    assert "model.decoder.blocks.0.linear.weight" in moved
    assert "guide.z_encoder.mean.weight" in moved


def test_vectorised_particles_go_through_batch_norm() -> None:
    vae, batch = make_vae(elbo_kwargs={"num_particles": 4, "vectorize_particles": True}), None
    batch = make_batch()
    (traces,) = vae.objective.traces(vae.model, vae.guide, batch)
    assert traces[0].nodes["z"]["value"].shape == (4, len(batch), 3)
    assert traces[0].nodes["x"]["fn"].mean.shape == (4, len(batch), N_GENES)
    assert traces[0].nodes["x"]["log_prob"].shape == (4, len(batch))


def test_a_factor_can_be_overridden_in_a_subclass() -> None:
    class Shifted(ContrastiveModel):
        def z_dist(self, batch: CellBatch) -> dist.Distribution:
            return dist.Normal(100.0, torch.ones(3)).to_event(1)

    vae = make_vae()
    model = Shifted(
        n_input=N_GENES,
        n_latent=5,
        likelihood=NegativeBinomial(),
        background_prior=vae.model.background_prior,
        salient_prior=vae.model.salient_prior,
        library_prior=None,
        covariates=vae.model.covariates,
        n_hidden=8,
        n_layers=1,
    )
    drawn = poutine.trace(model).get_trace(make_batch()).nodes["z"]["value"]
    assert (drawn > 90).all()
    assert vae.objective(model, vae.guide)(make_batch()).isfinite()


def test_a_plain_pyro_elbo_sees_unweighted_densities() -> None:
    vae, batch = make_vae(elbo=TraceMeanField_ELBO).eval(), make_batch(4, 4)
    pyro.set_rng_seed(1)
    weighted = vae.objective.loss(vae.model, vae.guide, batch)
    pyro.set_rng_seed(1)
    plain = TraceMeanField_ELBO().loss(vae.model, vae.guide, batch)
    without_effect = salient_kl(vae, batch)[~batch.is_target].sum().item()
    assert without_effect > 0
    assert plain == pytest.approx(4 * weighted + without_effect, rel=1e-5)


def test_the_library_posterior_starts_at_the_prior() -> None:
    vae, batch = make_vae(latent_library=True), make_batch()  # prior: log mean 3
    mean, _ = vae.guide.encode(batch)["library"]
    assert (mean - 3.0).abs().max() < 2.0


def test_batch_codes_reach_encoders_and_decoder() -> None:
    vae, batch = make_vae(n_batch=2).eval(), make_batch(n_batch=2)
    other = CellBatch(condition=batch.condition, x=batch.x, batch=1 - batch.batch)
    moments, other_moments = vae.guide.encode(batch), vae.guide.encode(other)
    assert not torch.allclose(moments["z"][0], other_moments["z"][0])
    assert not torch.allclose(moments["s"][0], other_moments["s"][0])
    z, s = torch.zeros(len(batch), 3), torch.zeros(len(batch), 2)
    decoded, other_decoded = vae.model.decode(z, s, batch), vae.model.decode(z, s, other)
    assert not torch.allclose(decoded["scale"], other_decoded["scale"])


def test_covariates_reach_encoders_and_decoder_and_are_missed_when_absent() -> None:
    vae, batch = make_vae(n_cats_per_cov=[3], n_continuous_cov=1).eval(), make_batch()
    n = len(batch)

    def with_covariates(category: int, value: float) -> CellBatch:
        return CellBatch(
            condition=batch.condition,
            x=batch.x,
            categorical=torch.full((n, 1), category),
            continuous=torch.full((n, 1), value),
        )

    first = vae.guide.encode(with_covariates(0, 0.0))["z"][0]
    assert not torch.allclose(first, vae.guide.encode(with_covariates(2, 0.0))["z"][0])
    assert not torch.allclose(first, vae.guide.encode(with_covariates(0, 1.0))["z"][0])
    with pytest.raises(ValueError, match="made with 1 categorical covariates"):
        vae.guide.encode(batch)


def test_a_guide_without_counts_says_so() -> None:
    with pytest.raises(ValueError, match="without `x`"):
        make_vae().guide(CellBatch(condition=torch.tensor([0, 1])))


def test_an_observed_library_without_counts_must_be_given() -> None:
    with pytest.raises(ValueError, match="pass `library=`"):
        make_vae().model(CellBatch(condition=torch.tensor([0, 1])))
