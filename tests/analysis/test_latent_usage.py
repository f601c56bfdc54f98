"""Which dimensions of a latent are in use."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch

from pyro_contrastive import (
    CellBatch,
    ContrastiveVI,
    MixtureOfGaussians,
    PerConditionNormal,
    SparseSalient,
)
from pyro_contrastive.testing import SimulationSettings, simulate


@pytest.fixture(scope="module")
def adata():
    cells = simulate(SimulationSettings(n_background=20, n_target=30, n_genes=15), seed=0)
    ContrastiveVI.setup_anndata(cells, condition_key="condition", background="control")
    return cells


def make(adata, **priors) -> ContrastiveVI:
    pyro.set_rng_seed(0)
    model = ContrastiveVI(
        adata, n_hidden=8, n_background_latent=2, n_salient_latent=3, dropout_rate=0.0, **priors
    )
    for parameter in model.module.model.salient_prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def moments(model, adata, site, rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the guide, evaluated by hand."""
    x = torch.as_tensor(adata.X[rows].toarray())
    cells = CellBatch(condition=torch.ones(len(x), dtype=torch.long), x=x)
    model.module.eval()
    with torch.no_grad():
        mean, variance = model.module.guide.encode(cells)[site]
    return mean.numpy(), variance.sqrt().numpy()


def kl(mean, sd, log_density) -> np.ndarray:
    """KL divergence of normals from a density, by quadrature, ``[cells]``."""
    steps = np.linspace(-9, 9, 20_001)
    ratio = scipy.stats.norm.logpdf(steps) - np.log(sd)[:, None]
    ratio -= log_density(mean[:, None] + sd[:, None] * steps)
    return scipy.integrate.trapezoid(scipy.stats.norm.pdf(steps) * ratio, steps)


@pytest.mark.parametrize("name", ["default", "sparse", "condition", "laplace"])
def test_nats_are_the_divergence_from_the_prior_in_target_cells(name, adata) -> None:
    priors = {
        "default": None,
        "sparse": SparseSalient(3),
        "condition": PerConditionNormal(2, 3),
        "laplace": dist.Laplace(0.5, 2.0),
    }
    model = make(adata, salient_prior=priors[name])
    prior = model.module.model.salient_prior
    densities = {
        "default": lambda _: scipy.stats.norm.logpdf,
        "sparse": lambda k: scipy.stats.norm(0, prior.scales[k].item()).logpdf,
        "condition": lambda k: scipy.stats.norm(prior.means[1, k].item()).logpdf,
        "laplace": lambda _: scipy.stats.laplace(0.5, 2.0).logpdf,
    }
    mean, sd = moments(model, adata, "s", slice(20, 50))
    expected = [kl(mean[:, k], sd[:, k], densities[name](k)).mean() for k in range(3)]
    usage = model.get_latent_usage(threshold=float(np.sort(expected)[1:].mean()))
    np.testing.assert_allclose(usage["nats"], expected, rtol=1e-4)
    np.testing.assert_allclose(usage["spread"], mean.std(0), rtol=1e-4)
    assert usage["active"].tolist() == (np.argsort(np.argsort(expected)) == 2).tolist()
    assert usage.index.name == "dimension"


def test_the_background_latent_is_that_of_all_cells(adata) -> None:
    model = make(adata)
    mean, sd = moments(model, adata, "z", slice(None))
    expected = 0.5 * (mean**2 + sd**2 - 1 - 2 * np.log(sd)).mean(0)
    np.testing.assert_allclose(model.get_latent_usage("background")["nats"], expected, rtol=1e-4)
    some = model.get_latent_usage("background", indices=[3], batch_size=1)
    alone = 0.5 * (mean[3] ** 2 + sd[3] ** 2 - 1 - 2 * np.log(sd[3]))
    np.testing.assert_allclose(some["nats"], alone, rtol=1e-4)


def test_random_numbers_are_left_alone(adata) -> None:
    model = make(adata)
    pyro.set_rng_seed(5)
    expected = torch.rand(3)
    pyro.set_rng_seed(5)
    model.get_latent_usage()
    assert torch.equal(torch.rand(3), expected)


def test_a_prior_without_a_word_on_single_dimensions_is_named(adata) -> None:
    model = make(adata, salient_prior=MixtureOfGaussians(3, 2))
    with pytest.raises(ValueError, match=r"MixtureOfGaussians does not factor over dimensions"):
        model.get_latent_usage()
    with pytest.raises(ValueError, match="representation_kind must be 'salient' or"):
        model.get_latent_usage("both")
