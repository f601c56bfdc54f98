"""Additive Poisson counts from non-negative loadings: the likelihood of linear factor models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.density.heads import SCALE
from pyro_contrastive.likelihoods.poisson import Poisson


class Loadings(nn.Module):
    """A linear map without bias whose weights are positive.

    Parameters
    ----------
    n_factors
        Width of the input.
    n_genes
        Width of the output. At the start, factors of 1 give outputs that sum to about 1.
    """

    def __init__(self, n_factors: int, n_genes: int) -> None:
        super().__init__()
        typical = -math.log(n_genes) - math.log(n_factors)
        self.log_weight = nn.Parameter(typical + 0.5 * torch.randn(n_genes, n_factors))

    def forward(self, factors: Tensor) -> Tensor:
        """Map ``[..., n_factors]`` to ``[..., n_genes]``."""
        return nn.functional.linear(factors, self.log_weight.exp())


class AdditivePoisson(Poisson):
    r"""Poisson counts whose mean adds up non-negative factors, each a set of genes.

    .. math:: x_{ng} \sim \mathrm{Poisson}\Bigl(l_n \bigl[\textstyle\sum_k z_{nk} S_{kg} +
        \sum_k s_{nk} W_{kg}\bigr]\Bigr), \quad S, W > 0

    as in the contrastive latent variable model for counts (CPLVM: Jones, Townes, Li & Engelhardt,
    Annals of Applied Statistics 2022). It needs positive latents and a decoder without hidden
    layers: ``background_prior=dist.Gamma(...)`` or ``dist.LogNormal(...)``, the same for
    `salient_prior`, and ``n_layers_decoder=0``. Batches and covariates add factors of their own.
    Normalised expression is the sum in brackets, which need not sum to 1 over genes.
    """

    def build(self, n_hidden: int, n_genes: int, n_batch: int = 1) -> None:
        """Make the loadings, ``[genes, factors]``."""
        super().build(n_hidden, n_genes, n_batch)
        self.layers = nn.ModuleDict({SCALE: Loadings(n_hidden, n_genes)})

    def decode(
        self, hidden: Tensor, batch: CellBatch, shared: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Add up the factors, ``[..., cells, genes]``.

        Raises
        ------
        ValueError
            If a factor is negative.
        """
        if hidden.min() < 0:
            msg = (
                "AdditivePoisson adds up non-negative factors, but one of them is negative. Use "
                "positive priors for both latents, e.g. background_prior=dist.Gamma(1., 1.), and "
                "no continuous covariates that may be negative."
            )
            raise ValueError(msg)
        scale = self.layers[SCALE](hidden)
        # A mean of 0 would make a single count infinitely unlikely.
        return {SCALE: scale.clamp(min=torch.finfo(scale.dtype).tiny)}

    @property
    def loadings(self) -> Tensor:
        """Loadings of the factors, ``[genes, factors]``: those of z, then s, then covariates."""
        layer = cast(Loadings, self.layers[SCALE])
        return layer.log_weight.exp()
