"""The posterior of each cell as a multivariate normal, and the Pyro program that draws from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from pyro.distributions.transforms import ExpTransform
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.guide import Moments

__all__ = ["RefinedGuide", "RefinedPosterior", "Sites", "times"]


@dataclass(frozen=True)
class Sites:
    """The latents of a cell in one vector: the sites of the guide, in the order of its program.

    Parameters
    ----------
    widths
        Number of latents of each site, by its name.
    positive
        Sites whose latents are positive: the vector holds their logarithms.
    """

    widths: Mapping[str, int]
    positive: frozenset[str]

    @property
    def n_latents(self) -> int:
        """Length of the vector."""
        return sum(self.widths.values())

    def slices(self) -> dict[str, slice]:
        """Where each site is in the vector."""
        found, start = {}, 0
        for site, width in self.widths.items():
            found[site] = slice(start, start + width)
            start += width
        return found

    def values(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the values of the sites at ``[..., latents]``."""
        return {
            site: vector[..., where].exp() if site in self.positive else vector[..., where]
            for site, where in self.slices().items()
        }

    def log_jacobian(self, vector: Tensor) -> Tensor | float:
        """Log-determinant of :meth:`values`, ``[...]``: densities are those of the vector."""
        logs = [vector[..., self.slices()[site]].sum(-1) for site in self.positive]
        return sum(logs[1:], logs[0]) if logs else 0.0


@dataclass(frozen=True)
class RefinedPosterior:
    """A multivariate normal posterior for each of some cells.

    Parameters
    ----------
    sites
        What the entries of the vector of latents are.
    mean
        ``[cells, latents]``.
    factor
        Lower-triangular factor L of the covariance L L', ``[cells, latents, latents]``.
    is_refined
        Cells for which the guide's own posterior is replaced, ``[cells]``. For the others it is
        kept, because refinement did not improve it, and mean and factor are its moments.
    failed
        Cells whose density or gradient was not finite, ``[cells]``.
    """

    sites: Sites
    mean: Tensor
    factor: Tensor
    is_refined: Tensor
    failed: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def take(self, chosen: Tensor) -> Self:
        """Return the posteriors of some of the cells."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sites"}
        return type(self)(self.sites, **{name: value[chosen] for name, value in tensors.items()})

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Join the posteriors of cells of the same model."""
        names = [f.name for f in fields(cls) if f.name != "sites"]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(parts[0].sites, **joined)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move the posteriors to a device, and to the dtype of the model."""
        dtype = self.mean.dtype if dtype is None else dtype
        mean, factor = (value.to(device, dtype) for value in (self.mean, self.factor))
        return type(self)(
            self.sites, mean, factor, self.is_refined.to(device), self.failed.to(device)
        )

    def marginals(self) -> dict[str, Moments]:
        """Mean and variance of each site, ``[cells, latents]``; of the log of a positive one."""
        variance = self.factor.square().sum(-1)
        return {
            site: (self.mean[:, where], variance[:, where])
            for site, where in self.sites.slices().items()
        }

    def means(self, site: str) -> Tensor:
        """Posterior mean of the latents of a site, on their own scale, ``[cells, latents]``."""
        mean, variance = self.marginals()[site]
        return (mean + variance / 2).exp() if site in self.sites.positive else mean

    def conditional(self, site: str, earlier: Mapping[str, Tensor]) -> Distribution:
        """Return the distribution of a site given the values of the sites before it.

        The normal is a chain: with u = mean + L e, the noise e of the earlier sites follows from
        their values, and shifts the mean of this one.

        Parameters
        ----------
        site
            Its name.
        earlier
            Values of the sites before it, ``[..., cells, latents]``.
        """
        slices = self.sites.slices()
        where = slices[site]
        loc = self.mean[:, where]
        if where.start:
            before = self._noise({name: earlier[name] for name in slices if name in earlier})
            loc = loc + times(self.factor[:, where, : where.start], before)
        normal = dist.MultivariateNormal(loc, scale_tril=self.factor[:, where, where])
        if site not in self.sites.positive:
            return normal
        return dist.TransformedDistribution(normal, [ExpTransform()])

    def _noise(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the standard normal noise behind the values of the first sites."""
        logs = [v.log() if s in self.sites.positive else v for s, v in values.items()]
        centred = torch.cat(logs, -1)
        n = centred.shape[-1]
        centred = centred - self.mean[:, :n]
        factor = self.factor[:, :n, :n].expand(*centred.shape, n)
        solved = torch.linalg.solve_triangular(factor, centred.unsqueeze(-1), upper=False)
        return solved.squeeze(-1)


class RefinedGuide:
    """The guide's program with the posterior of each cell replaced by a refined one.

    The program runs as it is, so that it draws whatever else it draws (parameters with a prior).
    An effect handler replaces the distributions of the latents, except in cells whose refinement
    did not improve on the guide.

    Parameters
    ----------
    guide
        The guide.
    posterior
        Posteriors of the cells that it will be called with.
    """

    def __init__(self, guide: nn.Module, posterior: RefinedPosterior) -> None:
        self.guide = guide
        self.posterior = posterior

    def __call__(self, batch: CellBatch) -> None:
        """Draw the latents of the cells."""
        with _Replaced(self.posterior):
            self.guide(batch)


class _Replaced(Messenger):
    """Effect handler that replaces the distributions of the latents by refined ones."""

    def __init__(self, posterior: RefinedPosterior) -> None:
        super().__init__()
        self.posterior = posterior
        self.keeps_some = not bool(posterior.is_refined.all())
        self.earlier: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        site = msg["name"]
        if site not in self.posterior.sites.widths:
            return
        refined = self.posterior.conditional(site, self.earlier)
        if self.keeps_some:
            refined = dist.MaskedMixture(self.posterior.is_refined, msg["fn"], refined)
        msg["fn"] = refined

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.posterior.sites.widths:
            self.earlier[msg["name"]] = msg["value"]


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Multiply ``[cells, n, m]`` by ``[..., cells, m]``."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
