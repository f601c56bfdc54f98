"""Penalties: terms added to the loss beside the ELBO."""

from pyro_contrastive.penalties.base import Penalty
from pyro_contrastive.penalties.kernels import HSIC, MMD
from pyro_contrastive.penalties.learned import SalientClassifier, TotalCorrelation
from pyro_contrastive.penalties.pinned import LateSalient, NarrowSalient, Wasserstein

__all__ = [
    "HSIC",
    "MMD",
    "LateSalient",
    "NarrowSalient",
    "Penalty",
    "SalientClassifier",
    "TotalCorrelation",
    "Wasserstein",
]
