"""Contrastive analysis of single-cell RNA-seq counts, as a Pyro program."""

from pyro_contrastive._settings import settings
from pyro_contrastive.additive import AdditivePoisson
from pyro_contrastive.analysis.checks import PosteriorPredictiveCheck
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.contrastive_vi import ContrastiveVI
from pyro_contrastive.count_likelihoods import Bernoulli, Poisson, ZeroInflatedPoisson
from pyro_contrastive.family import presets
from pyro_contrastive.flow_prior import NormalizingFlowPrior
from pyro_contrastive.gaussian import Gaussian
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.learned_priors import (
    MixtureOfGaussians,
    PerConditionNormal,
    ShrinkMeans,
    VampPrior,
)
from pyro_contrastive.likelihoods import (
    Likelihood,
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
)
from pyro_contrastive.methods.comparison import compare_models
from pyro_contrastive.model import ContrastiveModel
from pyro_contrastive.objective import ContrastiveELBO, ContrastiveMeanFieldELBO
from pyro_contrastive.penalties import (
    HSIC,
    MMD,
    NarrowSalient,
    Penalty,
    SalientClassifier,
    TotalCorrelation,
    Wasserstein,
)
from pyro_contrastive.perturbation_priors import EscapingPerturbation, PrivateSalient
from pyro_contrastive.priors import FixedPrior, LogNormalLibrary, Prior, StandardNormal
from pyro_contrastive.sparse_prior import SparseSalient
from pyro_contrastive.vae import ContrastiveVAE

__version__ = "0.1.0"

__all__ = [
    "HSIC",
    "MMD",
    "AdditivePoisson",
    "Bernoulli",
    "CellBatch",
    "ContrastiveELBO",
    "ContrastiveGuide",
    "ContrastiveMeanFieldELBO",
    "ContrastiveModel",
    "ContrastiveVAE",
    "ContrastiveVI",
    "EscapingPerturbation",
    "FixedPrior",
    "Gaussian",
    "Likelihood",
    "LogNormalLibrary",
    "MixtureOfGaussians",
    "NarrowSalient",
    "NegativeBinomial",
    "NormalizingFlowPrior",
    "Penalty",
    "PerConditionNormal",
    "Poisson",
    "PosteriorPredictiveCheck",
    "Prior",
    "PrivateSalient",
    "SalientClassifier",
    "ShrinkMeans",
    "SparseSalient",
    "StandardNormal",
    "TotalCorrelation",
    "VampPrior",
    "Wasserstein",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
    "compare_models",
    "presets",
    "settings",
]
