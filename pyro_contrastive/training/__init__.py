"""Fit a ContrastiveVAE to data: splits, mini-batches, the loop, early stopping, history."""

from pyro_contrastive.training.history import EarlyStopping, History
from pyro_contrastive.training.plan import TrainingPlan

__all__ = ["EarlyStopping", "History", "TrainingPlan"]
