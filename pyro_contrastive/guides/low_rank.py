"""A normal posterior with a covariance matrix of low rank plus a diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive.guides.correlated import CorrelatedGuide


class LowRankGuide(CorrelatedGuide):
    r"""One normal per cell over z, s and the log library size, correlated along a few directions.

    .. math:: (z, s, \log l) \mid x \sim N(m(x), D C D), \quad
        C = N (I + U U^\top) N, \quad N_{ii} = (1 + \lVert u_i \rVert^2)^{-1/2}

    with D the standard deviations and U of `rank` columns, from a network with one hidden layer on
    the encoders' output. Between the mean-field guide (rank 0) and
    :class:`~pyro_contrastive.FullCovarianceGuide`, with fewer numbers to learn: latents x rank.

    Parameters
    ----------
    rank
        Number of directions, at least 1. Default 3.
    """

    def __init__(self, rank: int = 3) -> None:
        super().__init__()
        check_arguments(locals(), "LowRankGuide")
        self.rank = rank

    def n_correlations(self, n_latents: int) -> int:
        """Return the number of entries of U."""
        return n_latents * self.rank

    def correlation_factor(self, numbers: Tensor, there: Tensor) -> Tensor:
        """Return the Cholesky factor of C."""
        n = there.shape[-1]
        u = numbers.reshape(*numbers.shape[:-1], n, self.rank) * there.unsqueeze(-1)
        matrix = u @ u.mT + torch.eye(n, dtype=u.dtype, device=u.device)
        # Not `cholesky`, which reads a code of errors: a step with it could not be recorded. There
        # is no error, since no eigenvalue is below 1.
        factor, _ = torch.linalg.cholesky_ex(matrix)
        return factor / (1 + u.square().sum(-1, keepdim=True)).sqrt()
