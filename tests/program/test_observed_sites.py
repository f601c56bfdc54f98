"""A model that observes a second site: its log-likelihood is never booked as a KL divergence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers import make_batch, make_vae
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from training_helpers import column, make_adata, make_model, train

from pyro_contrastive import CellBatch, ContrastiveModel
from pyro_contrastive.training.evaluate import evaluate
from pyro_contrastive.training.splits import Population

PARTS = {"reconstruction_loss_x", "reconstruction_loss_y", "kl_z", "kl_s"}


def protein(batch: CellBatch) -> Tensor:
    """A measurement beside the counts, ``[cells, 1]``."""
    return batch.observed_library().log()


class WithProtein(ContrastiveModel):
    def latents(self, batch: CellBatch) -> tuple[Tensor, Tensor, Tensor]:
        z, s, library = super().latents(batch)
        pyro.sample("y", dist.Normal(z[..., :1], 0.5).to_event(1), obs=protein(batch))
        return z, s, library


def with_protein(vae: Any) -> Any:
    vae.model.__class__ = WithProtein
    return vae


def loss_of_protein(guide_trace: Any, batch: CellBatch) -> np.ndarray:
    """-log p(y | z) of each cell at the draw of z, by scipy."""
    z = guide_trace.nodes["z"]["value"].detach().double().numpy()[..., :1]
    return -scipy.stats.norm.logpdf(protein(batch).double().numpy(), z, 0.5).sum(-1)


def pair_mean(losses: np.ndarray, batch: CellBatch) -> float:
    target = batch.is_target.numpy()
    return float(losses[..., target].mean() + losses[..., ~target].mean())


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("vectorize", [False, True])
def test_parts_are_named_by_whether_a_site_is_observed(elbo, vectorize) -> None:
    kwargs = {"num_particles": 3, "vectorize_particles": vectorize}
    vae = with_protein(make_vae(elbo=elbo, elbo_kwargs=kwargs).eval())
    vae.objective.kl_weight = 0.3
    batch = make_batch(3, 6)
    pyro.set_rng_seed(0)
    pairs = list(vae.objective.traces(vae.model, vae.guide, batch))
    pyro.set_rng_seed(0)
    loss = vae.objective.loss(vae.model, vae.guide, batch)
    parts = [vae.objective.parts(*pair) for pair in pairs]
    assert {name for found in parts for name in found} == PARTS
    for (_, guide_trace), found in zip(pairs, parts, strict=True):
        expected = pair_mean(loss_of_protein(guide_trace, batch), batch)
        assert float(found["reconstruction_loss_y"].detach()) == pytest.approx(expected, rel=1e-5)
    mean = {name: np.mean([float(found[name].detach()) for found in parts]) for name in PARTS}
    observed = mean["reconstruction_loss_x"] + mean["reconstruction_loss_y"]
    assert loss == pytest.approx(observed + 0.3 * (mean["kl_z"] + mean["kl_s"]), rel=1e-5)
    assert set(vae.objective.terms) == PARTS


def test_parts_can_be_differentiated() -> None:
    vae, batch = with_protein(make_vae()), make_batch()
    (pair,) = vae.objective.traces(vae.model, vae.guide, batch)
    vae.objective.parts(*pair)["reconstruction_loss_y"].backward()
    named = dict(vae.named_parameters())
    moved = {name for name, p in named.items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved
    assert all("z_encoder" in name for name in moved)  # y depends on z only


def test_parts_of_mini_batches_add_up_to_those_of_the_whole() -> None:
    vae, whole = with_protein(make_vae(elbo=TraceMeanField_ELBO)).eval(), make_batch(4, 9)
    sums: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for cells in (torch.arange(0, 6), torch.arange(6, 13)):
        (pair,) = vae.objective.traces(vae.model, vae.guide, whole.take(cells))
        for name, value in vae.objective.parts(*pair, sizes=(4, 9)).items():
            sums[name] += float(value.detach())
    (pair,) = vae.objective.traces(vae.model, vae.guide, whole)
    expected = vae.objective.parts(*pair)
    for name in ("kl_z", "kl_s"):  # in closed form, so independent of the draws
        assert sums[name] == pytest.approx(float(expected[name].detach()), rel=1e-5)


def test_history_and_held_out_parts_add_up() -> None:
    model = make_model(make_adata(), elbo=TraceMeanField_ELBO, wasserstein_penalty=2.0)
    with_protein(model.module)
    plan = {"min_kl_weight": 0.25, "max_kl_weight": 0.25}
    train(model, 3, train_size=0.7, plan_kwargs=plan)
    assert not [name for name in model.history if name.startswith("kl_y")]
    for part, loss in (("train", "train_loss"), ("validation", "validation_loss")):
        of = {name: column(model, f"{name}_{part}") for name in (*PARTS, "wasserstein")}
        observed = of["reconstruction_loss_x"] + of["reconstruction_loss_y"]
        kl = of["kl_z"] + of["kl_s"]
        np.testing.assert_allclose(column(model, f"reconstruction_loss_{part}"), observed)
        np.testing.assert_allclose(column(model, f"kl_local_{part}"), kl)
        np.testing.assert_allclose(column(model, f"elbo_{part}"), observed + kl)
        total = observed + 0.25 * (kl + 2 * of["wasserstein"])
        np.testing.assert_allclose(column(model, loss), total, rtol=1e-5)


def test_evaluate_books_a_second_observed_site_as_log_likelihood() -> None:
    model = make_model(make_adata())
    vae, data = with_protein(model.module), model._data(None)
    cells = Population(np.arange(6), np.arange(20, 31))
    found = evaluate(vae, data, cells, batch_size=100, device="cpu")
    batch = data.cells(np.concatenate([cells.background, cells.target]))
    vae.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        guide_trace = pyro.poutine.trace(vae.guide).get_trace(batch)
    expected = pair_mean(loss_of_protein(guide_trace, batch), batch)
    assert found["reconstruction_loss_y"] == pytest.approx(expected, rel=1e-5)
    assert set(found) == PARTS


def test_a_single_observed_site_has_the_name_of_scvi_tools() -> None:
    vae, batch = make_vae().eval(), make_batch()
    (pair,) = vae.objective.traces(vae.model, vae.guide, batch)
    assert set(vae.objective.parts(*pair)) == {"reconstruction_loss", "kl_z", "kl_s"}
