"""A normal posterior with a full covariance matrix per cell."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_contrastive.guides.correlated import CorrelatedGuide


class FullCovarianceGuide(CorrelatedGuide):
    r"""One normal per cell over z, s and the log library size, with a full covariance matrix.

    .. math:: (z, s, \log l) \mid x \sim N(m(x), \Sigma(x)), \quad
        \Sigma = \mathrm{diag}(d) R R^\top \mathrm{diag}(d), \quad
        R_{ij} = a_{ij} \Big/ \sqrt{1 + \textstyle\sum_{k < i} a_{ik}^2},\; a_{ii} = 1

    with R lower triangular. m and d come from the encoders, as in the mean-field guide, and the
    :math:`a_{ij}` from a network with one hidden layer on them. In the direction of a correlation
    the posterior of a cell is often several times as wide as a mean-field one can be.
    """

    def n_correlations(self, n_latents: int) -> int:
        """Return the number of pairs of latents."""
        return n_latents * (n_latents - 1) // 2

    def correlation_factor(self, numbers: Tensor, there: Tensor) -> Tensor:
        """Return R."""
        n = there.shape[-1]
        rows, columns = torch.tril_indices(n, n, -1, device=numbers.device)
        numbers = numbers * there[..., rows] * there[..., columns]
        below = numbers.new_zeros((*numbers.shape[:-1], n, n))
        below[..., rows, columns] = numbers
        factor = below + torch.eye(n, dtype=numbers.dtype, device=numbers.device)
        return factor / factor.square().sum(-1, keepdim=True).sqrt()
