"""Penalties: terms that the loss adds to the negative ELBO.

To add one to the library, write it in a file of this folder and name it here, in the import and in
``__all__``. The package exports what ``__all__`` names, and a saved model may name it.
"""

from collections.abc import Mapping
from types import MappingProxyType

from pyro_contrastive.penalties.base import Penalty
from pyro_contrastive.penalties.kernels import HSIC, MMD
from pyro_contrastive.penalties.learned import SalientClassifier, TotalCorrelation
from pyro_contrastive.penalties.pinned import LateSalient, NarrowSalient, Wasserstein
from pyro_contrastive.penalties.shrink import ShrinkMeans

__all__ = [
    "HSIC",
    "MMD",
    "LateSalient",
    "NarrowSalient",
    "Penalty",
    "SalientClassifier",
    "ShrinkMeans",
    "TotalCorrelation",
    "Wasserstein",
]

LIBRARY: Mapping[str, type[Penalty]] = MappingProxyType(
    {name: globals()[name] for name in __all__ if name != "Penalty"}
)
"""The library's own penalties by name: the only ones that are made because a file names them."""
