"""Normal posteriors whose latents are correlated, given the correlations of each cell."""

from __future__ import annotations

from abc import abstractmethod

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor
from torch.distributions import ExpTransform

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.guide import ContrastiveGuide, Moments
from pyro_contrastive.guides.summary import (
    n_summary,
    network,
    summary_of,
    without_salient,
)
from pyro_contrastive.model import CELLS
from pyro_contrastive.outline import ModelOutline


class CorrelatedGuide(ContrastiveGuide):
    r"""Base of guides with one normal distribution over all latents of a cell.

    The encoders give the marginal mean m and standard deviation d of each latent, as in
    :class:`~pyro_contrastive.ContrastiveGuide`, and a network of these moments gives the Cholesky
    factor R of their correlation matrix, whose rows have norm 1:

    .. math:: (z, s, \log l) = m + \mathrm{diag}(d) \, R \, \epsilon, \quad
        \epsilon \sim N(0, I), \quad R R^\top \text{ has ones on its diagonal}

    The sites stay apart: each is drawn given those before it, for instance
    :math:`s \mid z \sim N(m_s + D_s R_{sz} R_{zz}^{-1} u, D_s R_{ss} R_{ss}^\top D_s)` with
    :math:`u = D_z^{-1} (z - m_z)`. Positive latents are exponentials of such draws.

    Dimensions of s that the salient prior does not use are uncorrelated with all others, and so is
    s of a background cell, so that its z and library size have a density by themselves.

    Subclasses say how many numbers the network returns, and make the factor from them.
    """

    def build(self, outline: ModelOutline) -> None:
        """Make the encoders and the network of correlations."""
        super().build(outline)
        self.n_latents = outline.n_latents
        n_out = self.n_correlations(sum(self.n_latents.values()))
        self.correlations = network(n_summary(outline), outline.n_hidden, n_out)

    @abstractmethod
    def n_correlations(self, n_latents: int) -> int:
        """Return how many numbers :meth:`correlation_factor` needs for this many latents."""

    @abstractmethod
    def correlation_factor(self, numbers: Tensor, there: Tensor) -> Tensor:
        """Return the Cholesky factor of a correlation matrix, ``[..., cells, latents, latents]``.

        Parameters
        ----------
        numbers
            The network's output, ``[..., cells, n_correlations]``; 0 means uncorrelated.
        there
            Which latents may be correlated, 1 or 0, ``[cells, latents]``: the row and the column of
            the others are those of the identity.
        """

    def draw(self, moments: dict[str, Moments], batch: CellBatch) -> None:
        """Draw z, s and, if latent, the library size, each given those before it."""
        self.shared()
        moments = {site: moments[site] for site in self.n_latents}  # in this order
        there = self._dependent(moments, batch)
        factor = self._factor_of(moments, there, batch)
        noise: list[Tensor] = []  # epsilon of the sites drawn so far
        with pyro.plate(CELLS, len(batch), dim=-1):
            for site, (mean, variance) in moments.items():
                start = sum(part.shape[-1] for part in noise)
                stop = start + mean.shape[-1]
                given = torch.zeros_like(mean)
                if noise:
                    given = _times(factor[..., start:stop, :start], torch.cat(noise, dim=-1))
                own, scale = factor[..., start:stop, start:stop], variance.sqrt()
                conditional = self._conditional(site, mean + scale * given, scale, own)
                value = self._sample(site, conditional, (mean, variance))
                # Nothing depends on an s that is not there; its value may have no logarithm.
                standard = (self._real(site, value, there[site]) - mean) / scale - given
                solved = torch.linalg.solve_triangular(own, standard.unsqueeze(-1), upper=False)
                noise.append(torch.where(there[site], solved.squeeze(-1), 0.0))

    def _factor_of(
        self, moments: dict[str, Moments], there: dict[str, Tensor], batch: CellBatch
    ) -> Tensor:
        mask = torch.cat([there[site] for site in moments], dim=-1)
        covariates = self.covariates(batch, like=self.z_encoder.mean.weight)
        numbers = self.correlations(summary_of(without_salient(moments, batch), covariates))
        return self.correlation_factor(numbers, mask.to(numbers))

    def _correlations(self, moments: dict[str, Moments], batch: CellBatch) -> Tensor:
        if self._overrides("forward", "draw"):
            return super()._correlations(moments, batch)
        there = self._dependent(moments, batch)
        return self._factor_of(moments, there, batch)

    def _conditional(self, site: str, mean: Tensor, scale: Tensor, factor: Tensor) -> Distribution:
        if site == "library":
            return self.library_dist(mean, (scale * factor.squeeze(-1)).square())
        normal = dist.MultivariateNormal(mean, scale_tril=scale.unsqueeze(-1) * factor)
        if not self.is_positive(site):
            return normal
        return dist.TransformedDistribution(normal, [ExpTransform()])


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
