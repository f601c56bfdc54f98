"""ELBO and importance-weighted likelihood of cells, against exact values."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers import N_GENES, make_vae
from pyro.nn import PyroModule

from pyro_contrastive.analysis.likelihood import (
    elbo,
    log_likelihood_of_reconstruction,
    marginal_log_likelihood,
)
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.data import CellData


class LinearModel(PyroModule):
    """z ~ N(0, I_2), s ~ N(0, 1), x ~ N(W z + v s, 1), without s in background cells."""

    W = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.3, -0.2]])
    v = torch.tensor([0.8, -0.4, 1.0])

    def forward(self, batch):
        with pyro.plate("cells", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            s = pyro.sample("s", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            s = s * batch.is_target.unsqueeze(-1)
            pyro.sample("x", dist.Normal(z @ self.W.T + s * self.v, 1.0).to_event(1), obs=batch.x)


class WideGuide(PyroModule):
    """A guide that is not the posterior, but covers it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.slope = torch.nn.Parameter(torch.tensor(0.2))

    def forward(self, batch):
        with pyro.plate("cells", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(self.slope * batch.x @ LinearModel.W, 1.0).to_event(1))
            mean = self.slope * (batch.x @ LinearModel.v).unsqueeze(-1)
            pyro.sample("s", dist.Normal(mean, 1.0).to_event(1))


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = LinearModel("linear_model")
        self.guide = WideGuide("wide_guide")


@pytest.fixture
def data() -> CellData:
    rng = np.random.default_rng(0)
    counts = rng.normal(0, 1.5, (6, 3)).astype(np.float32)
    return CellData(counts, condition=np.array([0, 0, 0, 1, 1, 1]))


def exact(data: CellData) -> np.ndarray:
    """log p(x): x is normal with covariance W W' + I, and v v' in target cells."""
    W, v = LinearModel.W.numpy(), LinearModel.v.numpy()
    covariances = [W @ W.T + np.eye(3) + c * np.outer(v, v) for c in data.condition]
    return np.array(
        [
            scipy.stats.multivariate_normal.logpdf(x, cov=c)
            for x, c in zip(data.counts, covariances, strict=True)
        ]
    )


def repeated(function, vae, data: CellData, times: int, *arguments) -> np.ndarray:
    """Average over repetitions, made by naming each cell many times."""
    query = Query(vae, data, np.tile(np.arange(6), times), 2000)
    return function(query, *arguments).reshape(times, 6).mean(0)


def test_importance_weights_give_the_exact_likelihood(data) -> None:
    estimate = marginal_log_likelihood(Query(Linear(), data, np.arange(6)), 20_000)
    assert estimate == pytest.approx(exact(data), abs=0.05)


def test_elbo_is_the_expected_bound(data) -> None:
    vae = Linear()
    many = repeated(elbo, vae, data, 3000)
    x, W, v = data.counts, LinearModel.W.numpy(), LinearModel.v.numpy()
    mean_z, mean_s = 0.2 * x @ W, 0.2 * x @ v * data.condition
    residual = x - mean_z @ W.T - mean_s[:, None] * v
    spread = (W**2).sum() + data.condition * (v**2).sum()
    recon = -1.5 * np.log(2 * np.pi) - 0.5 * ((residual**2).sum(1) + spread)
    bound = recon - 0.5 * (mean_z**2).sum(1) - 0.5 * mean_s**2
    assert many == pytest.approx(bound, abs=0.3)
    assert (bound < exact(data)).all()
    lines = repeated(log_likelihood_of_reconstruction, vae, data, 3000)
    assert lines == pytest.approx(recon, abs=0.3)


def test_more_draws_tighten_the_bound_and_passes_do_not_matter(data) -> None:
    vae = Linear()
    few = repeated(marginal_log_likelihood, vae, data, 300, 1)
    more = repeated(marginal_log_likelihood, vae, data, 50, 70)
    assert (few < more).all()
    assert more == pytest.approx(exact(data), abs=0.2)


@pytest.mark.parametrize("latent_library", [True, False])
def test_values_are_per_cell_in_order(latent_library) -> None:
    rng = np.random.default_rng(1)
    data = CellData(rng.poisson(3, (7, N_GENES)).astype(np.float32), condition=np.arange(7) % 2)
    vae = make_vae(latent_library=latent_library)
    for function in (elbo, log_likelihood_of_reconstruction):
        assert function(Query(vae, data, np.array([5, 1]), 1)).shape == (2,)
    every = marginal_log_likelihood(Query(vae, data, np.arange(7), 3), 300)
    some = marginal_log_likelihood(Query(vae, data, np.array([5, 1])), 300)
    assert some == pytest.approx(every[[5, 1]], abs=0.5)
    with pytest.raises(ValueError, match="n_mc_samples"):
        marginal_log_likelihood(Query(vae, data, np.arange(7)), 0)
