"""Contrastive analysis of single-cell RNA-seq counts, as a Pyro program."""

from pyro_contrastive._tools.settings import settings
from pyro_contrastive.analysis.ppc import PosteriorPredictiveCheck
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.contrastive_vi import ContrastiveVI
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.likelihoods import (
    AdditivePoisson,
    Bernoulli,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from pyro_contrastive.methods.comparison import compare_models
from pyro_contrastive.model import ContrastiveModel
from pyro_contrastive.objective import ContrastiveELBO, ContrastiveMeanFieldELBO
from pyro_contrastive.penalties import (
    HSIC,
    MMD,
    LateSalient,
    NarrowSalient,
    Penalty,
    SalientClassifier,
    TotalCorrelation,
    Wasserstein,
)
from pyro_contrastive.presets import presets
from pyro_contrastive.priors import (
    EscapingPerturbation,
    FixedPrior,
    LogNormalLibrary,
    MixtureOfGaussians,
    NormalizingFlowPrior,
    PerConditionNormal,
    Prior,
    PrivateSalient,
    ShrinkMeans,
    SparseSalient,
    StandardNormal,
    VampPrior,
)
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
    "LateSalient",
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
