"""Names of the parts that the library makes when a file names them."""

from __future__ import annotations

LIBRARY_PARTS = {
    "Likelihood": {
        "AdditivePoisson",
        "Bernoulli",
        "Gaussian",
        "NegativeBinomial",
        "Poisson",
        "ZeroInflatedNegativeBinomial",
        "ZeroInflatedPoisson",
    },
    "Prior": {
        "EscapingPerturbation",
        "FixedPrior",
        "LogNormalLibrary",
        "MixtureOfGaussians",
        "NormalizingFlowPrior",
        "PerConditionNormal",
        "PrivateSalient",
        "SparseSalient",
        "StandardNormal",
        "VampPrior",
    },
    "Penalty": {
        "HSIC",
        "LateSalient",
        "MMD",
        "NarrowSalient",
        "SalientClassifier",
        "ShrinkMeans",
        "TotalCorrelation",
        "Wasserstein",
    },
}
"""Everything that loading a file can make, by kind: public names of this package."""
PART_KINDS = {
    "likelihood": "Likelihood",
    "background_prior": "Prior",
    "salient_prior": "Prior",
    "library_prior": "Prior",
    "dispersion_prior": "Prior",
    "penalties": "Penalty",
}
"""Kind of part that a model takes under each keyword."""
