"""Priors of the latents: modules that look at the cells and return a distribution."""

from pyro_contrastive.priors.base import (
    FixedPrior,
    LogNormalLibrary,
    Prior,
    PriorLike,
    StandardNormal,
    as_prior,
)
from pyro_contrastive.priors.flow import NormalizingFlowPrior
from pyro_contrastive.priors.learned import (
    MixtureOfGaussians,
    PerConditionNormal,
    ShrinkMeans,
    VampPrior,
)
from pyro_contrastive.priors.perturbation import EscapingPerturbation, PrivateSalient
from pyro_contrastive.priors.sparse import SparseSalient

__all__ = [
    "EscapingPerturbation",
    "FixedPrior",
    "LogNormalLibrary",
    "MixtureOfGaussians",
    "NormalizingFlowPrior",
    "PerConditionNormal",
    "Prior",
    "PriorLike",
    "PrivateSalient",
    "ShrinkMeans",
    "SparseSalient",
    "StandardNormal",
    "VampPrior",
    "as_prior",
]
