"""Priors of the latents: modules that take the cells and return a distribution.

To add one to the library, write it in a file of this folder and name it here, in the import and in
``__all__``. The package exports what ``__all__`` names, and a saved model may name it.
"""

from collections.abc import Mapping
from types import MappingProxyType

from pyro_contrastive.priors.base import Prior
from pyro_contrastive.priors.fixed import FixedPrior, StandardNormal
from pyro_contrastive.priors.fixed import PriorLike as PriorLike  # for the library itself,
from pyro_contrastive.priors.fixed import as_prior as as_prior  # which does not export them
from pyro_contrastive.priors.flow import NormalizingFlowPrior
from pyro_contrastive.priors.learned import MixtureOfGaussians, PerConditionNormal, VampPrior
from pyro_contrastive.priors.library_size import LogNormalLibrary
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
    "PrivateSalient",
    "SparseSalient",
    "StandardNormal",
    "VampPrior",
]

LIBRARY: Mapping[str, type[Prior]] = MappingProxyType(
    {name: globals()[name] for name in __all__ if name != "Prior"}
)
"""The library's own priors by name: the only ones that are made because a file names them."""
