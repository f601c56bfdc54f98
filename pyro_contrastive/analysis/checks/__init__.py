"""Posterior predictive checks: data beside replicates of them, statistic by statistic."""

from pyro_contrastive.analysis.checks.check import PosteriorPredictiveCheck
from pyro_contrastive.analysis.checks.custom import Statistic
from pyro_contrastive.analysis.checks.run import check_against_replicates

__all__ = ["PosteriorPredictiveCheck", "Statistic", "check_against_replicates"]
