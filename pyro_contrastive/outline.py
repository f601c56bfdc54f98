"""What a guide has to know of its model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.likelihoods.dispersion import DispersionPosterior
from pyro_contrastive.networks import Covariates


@dataclass(frozen=True)
class ModelOutline:
    """What a guide has to know of its model.

    Parameters
    ----------
    n_input
        Number of genes.
    n_background_latent, n_salient_latent
        Dimensions of z and s.
    library_log_mean
        Typical log library size, at which q(l | x) starts; ``None``: the library size is observed.
        An encoder that starts at 0, as in scvi-tools, needs hundreds of epochs to get there.
    covariates
        Covariates that the encoders see besides the counts.
    n_hidden, n_layers, dropout_rate
        Width and number of hidden layers of each encoder, and their dropout.
    positive
        Which of ``"z"`` and ``"s"`` are positive: the guide draws their logarithms.
    used_salient
        Function that returns the dimensions of s that a cell has: :meth:`Prior.used` of the salient
        prior.
    dispersion_posterior
        Posterior of the inverse dispersions, if they have a prior.
    encoder_input
        Transforms the data for the encoders; default ``log(1 + x)``.
    """

    n_input: int
    n_background_latent: int
    n_salient_latent: int
    library_log_mean: float | None
    covariates: Covariates
    n_hidden: int
    n_layers: int
    dropout_rate: float
    positive: Collection[str] = ()
    used_salient: Callable[[CellBatch], Tensor | None] = lambda _: None
    dispersion_posterior: DispersionPosterior | None = None
    encoder_input: Callable[[Tensor], Tensor] = torch.log1p

    @property
    def n_latents(self) -> dict[str, int]:
        """Dimension of each latent site, in the order in which model and guide draw them."""
        sizes = {"z": self.n_background_latent, "s": self.n_salient_latent}
        return sizes if self.library_log_mean is None else sizes | {"library": 1}
