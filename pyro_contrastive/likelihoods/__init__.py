"""Likelihoods: modules that own their decoder heads and turn them into a distribution of x.

To add one to the library, write it in a file of this folder and name it here: in the import, in
``__all__`` and, where it needs no arguments, in ``SHORT_NAMES``. The package exports what
``__all__`` names, a saved model may name it, and the command line offers the short names.
"""

from collections.abc import Mapping
from types import MappingProxyType

from pyro_contrastive.likelihoods.additive import AdditivePoisson
from pyro_contrastive.likelihoods.base import Likelihood
from pyro_contrastive.likelihoods.gaussian import Gaussian
from pyro_contrastive.likelihoods.negative_binomial import (
    INVERSE_DISPERSION as INVERSE_DISPERSION,  # for the library itself: not exported
)
from pyro_contrastive.likelihoods.negative_binomial import (
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
)
from pyro_contrastive.likelihoods.poisson import Bernoulli, Poisson, ZeroInflatedPoisson

__all__ = [
    "AdditivePoisson",
    "Bernoulli",
    "Gaussian",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
]

LIBRARY: Mapping[str, type[Likelihood]] = MappingProxyType(
    {name: globals()[name] for name in __all__ if name != "Likelihood"}
)
"""The library's own likelihoods by name: the only ones that are made because a file names them."""

SHORT_NAMES: Mapping[str, type[Likelihood]] = MappingProxyType(
    {
        "zinb": ZeroInflatedNegativeBinomial,
        "nb": NegativeBinomial,
        "poisson": Poisson,
        "zip": ZeroInflatedPoisson,
        "bernoulli": Bernoulli,
        "gaussian": Gaussian,
    }
)
"""Likelihoods that can be chosen on the command line, where they are made without arguments."""
