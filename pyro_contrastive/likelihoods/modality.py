"""The kinds of data that a model observes of each cell, with their likelihoods."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_contrastive.likelihoods.base import Likelihood


@dataclass(frozen=True)
class Modality:
    """One kind of data observed of each cell, such as its counts of genes.

    Parameters
    ----------
    site
        Name of the site where it is observed, and of its entry in ``CellBatch.observed``.
    likelihood
        Its observation model.
    n_features
        Number of features per cell.
    """

    site: str
    likelihood: Likelihood
    n_features: int
