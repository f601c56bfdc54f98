"""Likelihoods: modules that own their decoder heads and turn them into a distribution of x."""

from pyro_contrastive.likelihoods.additive import AdditivePoisson
from pyro_contrastive.likelihoods.base import DROPOUT, Likelihood
from pyro_contrastive.likelihoods.gaussian import Gaussian
from pyro_contrastive.likelihoods.negative_binomial import (
    INVERSE_DISPERSION,
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
)
from pyro_contrastive.likelihoods.poisson import Bernoulli, Poisson, ZeroInflatedPoisson

__all__ = [
    "DROPOUT",
    "INVERSE_DISPERSION",
    "AdditivePoisson",
    "Bernoulli",
    "Gaussian",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
]
