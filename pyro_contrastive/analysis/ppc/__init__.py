"""Posterior predictive checks: data compared with replicates, statistic by statistic."""

from pyro_contrastive.analysis.ppc.check import PosteriorPredictiveCheck
from pyro_contrastive.analysis.ppc.custom import Statistic
from pyro_contrastive.analysis.ppc.inputs import CheckedData, CheckSettings, ReplicateStream
from pyro_contrastive.analysis.ppc.run import check_against_replicates

__all__ = [
    "CheckSettings",
    "CheckedData",
    "PosteriorPredictiveCheck",
    "ReplicateStream",
    "Statistic",
    "check_against_replicates",
]
