"""Contracts: our own components keep them, and each defect is found and explained."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
from torch import nn

import pyro_contrastive
from pyro_contrastive import (
    HSIC,
    MMD,
    AdditivePoisson,
    Bernoulli,
    EscapingPerturbation,
    FixedPrior,
    Gaussian,
    LateSalient,
    Likelihood,
    LogNormalLibrary,
    MixtureOfGaussians,
    NarrowSalient,
    NegativeBinomial,
    NormalizingFlowPrior,
    Penalty,
    PerConditionNormal,
    Poisson,
    Prior,
    PrivateSalient,
    SalientClassifier,
    ShrinkMeans,
    SparseSalient,
    StandardNormal,
    TotalCorrelation,
    VampPrior,
    Wasserstein,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from pyro_contrastive.testing import check_likelihood, check_penalty, check_prior

# One or more of each of our own classes, with the sizes it needs; a test below finds those missing.
PRIORS = [
    (StandardNormal, (3,), {}),
    (FixedPrior, (dist.Laplace(0.0, 1.0), 3), {}),
    (FixedPrior, (dist.Gamma(2.0, 1.0), 3), {"site": "z"}),
    (LogNormalLibrary, ([3.0, 4.0], [0.3, 0.2]), {"site": "library", "n_batch": 2}),
    (MixtureOfGaussians, (3, 4), {}),
    (MixtureOfGaussians, (3, 4), {"site": "z"}),
    (VampPrior, (12, 5), {}),
    (NormalizingFlowPrior, (3,), {"site": "z"}),
    (PerConditionNormal, (3, 3), {"n_conditions": 3}),
    (PrivateSalient, (4, 3), {"n_conditions": 4}),
    (EscapingPerturbation, (3, 3), {"n_conditions": 3}),
    (SparseSalient, (3,), {}),
]
LIKELIHOODS = [
    (NegativeBinomial, (), {}),
    (NegativeBinomial, ("gene-batch",), {}),
    (NegativeBinomial, ("gene-cell",), {}),
    (ZeroInflatedNegativeBinomial, (), {}),
    (Poisson, (), {}),
    (ZeroInflatedPoisson, (), {}),
    (Bernoulli, (), {}),
    (Gaussian, (), {}),
    (Gaussian, (False,), {}),
    (
        AdditivePoisson,
        (),
        {
            "background_prior": dist.Gamma(2.0, 1.0),
            "salient_prior": dist.Gamma(2.0, 1.0),
            "n_layers_decoder": 0,
        },
    ),
]
PENALTIES = [
    (Wasserstein, (2.0,), {}),
    (NarrowSalient, (2.0, 0.2), {}),
    (LateSalient, (2.0, 30), {}),
    (MMD, (2.0,), {}),
    (MMD, (2.0, "s"), {}),
    (HSIC, (2.0,), {}),
    (TotalCorrelation, (2.0, 3, 2), {}),
    (SalientClassifier, (2.0, 2), {}),
    (ShrinkMeans, ([5, 7, 9],), {"n_conditions": 3, "salient_prior": PerConditionNormal(3, 2)}),
]


def moved(component):
    """Take the parameters away from 0, where some gradients vanish by symmetry."""
    for parameter in component.parameters():
        nn.init.normal_(parameter, std=0.5)
    return component


def ids(cases) -> list[str]:
    return [f"{cls.__name__}-{i}" for i, (cls, _, _) in enumerate(cases)]


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "args", "kwargs"), PRIORS, ids=ids(PRIORS))
def test_our_priors_keep_the_contract(cls, args, kwargs) -> None:
    n_latent = 1 if cls is LogNormalLibrary else 3
    check_prior(moved(cls(*args)), n_latent, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "args", "kwargs"), LIKELIHOODS, ids=ids(LIKELIHOODS))
def test_our_likelihoods_keep_the_contract(cls, args, kwargs) -> None:
    check_likelihood(lambda: cls(*args), **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "args", "kwargs"), PENALTIES, ids=ids(PENALTIES))
def test_our_penalties_keep_the_contract(cls, args, kwargs) -> None:
    if "salient_prior" in kwargs:
        moved(kwargs["salient_prior"])
    check_penalty(cls(*args), **kwargs)


@pytest.mark.parametrize(
    ("base", "cases"), [(Prior, PRIORS), (Likelihood, LIKELIHOODS), (Penalty, PENALTIES)]
)
def test_no_public_class_is_left_out(base, cases) -> None:
    public = {getattr(pyro_contrastive, name) for name in pyro_contrastive.__all__}
    ours = {c for c in public if isinstance(c, type) and issubclass(c, base) and c is not base}
    assert ours <= {cls for cls, _, _ in cases}
