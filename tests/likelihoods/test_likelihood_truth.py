"""On data drawn from a likelihood, by NumPy only, it is the one that describes held-out cells."""

from __future__ import annotations

import math
import warnings
from typing import Any

import anndata as ad
import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from pyro_contrastive import (
    Bernoulli,
    ContrastiveVI,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ZeroInflatedPoisson,
)
from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.analysis.runs import draw_posterior, run_model
from pyro_contrastive.testing import SimulationSettings, simulate

pytestmark = pytest.mark.slow
N_GENES = 60
ZERO_PROBABILITY = 0.4


def cells(total: float = 600.0, effect: float = 0.5) -> ad.AnnData:
    """Negative binomial counts of 500 cells, and the rates they were drawn from."""
    adata = simulate(
        SimulationSettings(
            n_background=250,
            n_target=250,
            n_genes=N_GENES,
            mean_total=total,
            zero_probability=0.0,
            inverse_dispersion=2.0,
            effect=effect,
        )
    )
    adata.layers["rate"] = adata.obs["library"].to_numpy()[:, None] * adata.layers["scale"]
    return adata


def fitted(adata: ad.AnnData, x: Any, likelihood: Likelihood, n: int = 100, **more: Any) -> Any:
    """A model of the data `x`, and its log p(x) per held-out cell."""
    adata.X = np.asarray(x, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* does not hold raw counts", UserWarning)
        ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    torch.manual_seed(0)
    sizes = {"n_hidden": 32, "n_background_latent": 4, "n_salient_latent": 3}
    model = ContrastiveVI(adata, likelihood=likelihood, **sizes, **more)
    model.train(
        max_epochs=n,
        batch_size=64,
        train_size=0.8,
        seed=0,
        enable_progress_bar=False,
        plan_kwargs={"lr": 5e-3},
    )
    held_out = model.validation_indices
    return model, model.get_marginal_ll(indices=held_out, n_mc_samples=100, seed=0)


def test_overdispersed_counts_are_negative_binomial() -> None:
    adata = cells()
    x = adata.X.toarray()
    _, right = fitted(adata, x, NegativeBinomial())
    _, wrong = fitted(adata, x, Poisson())
    assert right > wrong + 30


def test_poisson_counts_are_poisson() -> None:
    adata = cells()
    x = np.random.default_rng(1).poisson(adata.layers["rate"])
    _, right = fitted(adata, x, Poisson())
    for other in (NegativeBinomial(), ZeroInflatedPoisson()):
        _, more_than_needed = fitted(adata, x, other)
        assert right > more_than_needed
    latents = scipy.stats.poisson(adata.layers["rate"]).logpmf(x).sum(axis=1).mean()
    assert right < latents  # what knowing the rates would give


def test_structural_zeros_are_found() -> None:
    adata = cells(effect=0.2)
    rng = np.random.default_rng(1)
    rate = adata.layers["rate"]
    x = rng.poisson(rate) * (rng.random(rate.shape) >= ZERO_PROBABILITY)
    latent: dict[str, Any] = {"use_observed_lib_size": False}
    model, right = fitted(adata, x, ZeroInflatedPoisson(), **latent)
    _, wrong = fitted(adata, x, Poisson(), **latent)
    assert right > wrong + 30
    # The observed library size is what the structural zeros left, 0.6 of the rates' sum.
    _, observed = fitted(adata, x, ZeroInflatedPoisson())
    assert right > observed + 5
    batch = model._data(None).cells(np.arange(len(adata)))
    with evaluating(model.module):
        nodes = run_model(model.module, batch, draw_posterior(model.module, batch)).nodes
    dropped = torch.sigmoid(nodes["x"]["fn"].base_dist.zi_logits)[0].numpy()
    assert dropped[rate > 10].mean() == pytest.approx(ZERO_PROBABILITY, abs=0.08)


def test_openness_is_not_a_count_of_one() -> None:
    adata = cells(total=60.0)
    x = np.random.default_rng(1).poisson(adata.layers["rate"]) > 0
    open_fraction = x.mean()
    assert 0.3 < open_fraction < 0.5
    model, right = fitted(adata, x, Bernoulli())
    _, wrong = fitted(adata, x, Poisson())
    assert right > wrong + 3
    # What its docstring says of the library size, where many features are open.
    typical = -N_GENES * math.log(1 - open_fraction)
    latent, better = fitted(
        adata,
        x,
        Bernoulli(),
        use_observed_lib_size=False,
        library_prior=dist.LogNormal(math.log(typical), 1.0),
    )
    assert better > right
    truth = adata.layers["rate"]

    def error(fit: ContrastiveVI) -> float:
        rates = fit.get_salient_normalized_expression(
            library_size="latent", n_samples=25, seed=0, return_numpy=True
        )
        return float(np.sqrt(np.mean((np.exp(-rates) - np.exp(-truth)) ** 2)))

    assert error(latent) < 0.8 * error(model)


def test_a_gaussian_learns_means_and_standard_deviations() -> None:
    adata = cells()
    rng = np.random.default_rng(1)
    truth = np.log1p(1e4 * adata.layers["scale"])
    scale = np.linspace(0.1, 0.8, N_GENES)
    x = truth + scale * rng.normal(size=truth.shape)
    model, right = fitted(adata, x, Gaussian(log1p=False), n=300)
    train, held_out = model.train_indices, model.validation_indices
    without_latents = scipy.stats.norm(x[train].mean(0), x[train].std(0)).logpdf(x[held_out])
    knowing_all = scipy.stats.norm(truth, scale).logpdf(x)[held_out]
    assert without_latents.sum(axis=1).mean() + 5 < right < knowing_all.sum(axis=1).mean()
    learned = model.module.model.likelihood.log_scale.exp().detach().numpy() + 0.01
    assert np.corrcoef(learned, scale)[0, 1] > 0.9
    model, _ = fitted(adata, np.maximum(x, 0), Gaussian(), n=300)
    expression = model.get_salient_normalized_expression(n_samples=25, seed=0, return_numpy=True)
    varying = np.log1p(expression), truth
    assert np.corrcoef(*(v.ravel() for v in varying))[0, 1] > 0.95
    within = [(v - v.mean(axis=0)).ravel() for v in varying]  # not only that genes differ
    assert np.corrcoef(*within)[0, 1] > 0.8
