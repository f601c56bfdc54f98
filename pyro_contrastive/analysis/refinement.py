r"""The posterior of each cell, improved from the guide's with the decoder fixed.

The guide is amortised: one encoder serves all cells, and none of them gets the best posterior it
could have. Here the ELBO of every cell is maximised over a multivariate normal of its own, by
natural-gradient steps (Khan & Nielsen, "Conjugate-computation variational inference", AISTATS 2017;
Lin, Schmidt & Khan, "Handling the positive-definite constraint in the Bayesian learning rule", ICML
2020): with :math:`f(u) = -\log p(x, u)` and u the latents of a cell,

.. math::
    \Sigma^{-1} \leftarrow (1 - b)\, \Sigma^{-1} + b\, E_q[\nabla^2 f], \qquad
    \mu \leftarrow \mu - r\, \Sigma\, E_q[\nabla f].

The Hessian is never computed. Draws come in pairs :math:`u_\pm = \mu \pm L e`; the mean of the two
gradients is the one in the step, and half their difference, d, is the Hessian times :math:`L e` as
far as f is quadratic. In whitened coordinates, :math:`L' d` should equal e. What is left over
corrects the precision by a damped Powell-symmetric-Broyden update, the smallest symmetric change
that explains it. Two gradients of a random direction so teach a whole matrix in a few steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating, frozen, seeded
from pyro_contrastive.analysis.natural_gradient import State, improve
from pyro_contrastive.analysis.prior_widths import prior_widths
from pyro_contrastive.analysis.refined_posterior import RefinedPosterior, Sites
from pyro_contrastive.analysis.refinement_start import guide_normal, has_density, widened
from pyro_contrastive.analysis.runs import draw_posterior, shared_sites
from pyro_contrastive.cells import CellBatch, X
from pyro_contrastive.model import SALIENT, without_expression
from pyro_contrastive.sites import SalientOfTargets
from pyro_contrastive.vae import ContrastiveVAE

__all__ = ["Refinement", "refine"]

DIAGONAL_SHARE = 0.3
"""Share of the steps in which the covariance stays diagonal. With a full one from the start, about
one cell in a hundred diverges."""
NOISE_ROWS = 4096
N_JUDGING_PAIRS = 4
"""Pairs of draws that decide whether a cell's refined posterior is better than the guide's."""


@dataclass(frozen=True)
class Refinement:
    """How posteriors are refined.

    Parameters
    ----------
    n_steps
        Steps; each costs two gradients per pair of draws. Default 30, after which little changes.
    n_pairs
        Pairs of draws of each cell in a step. Default 2.
    """

    n_steps: int = 30
    n_pairs: int = 2

    def __post_init__(self) -> None:
        for name in ("n_steps", "n_pairs"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                msg = f"{name} of a refinement must be a whole number of at least 1, not {value!r}."
                raise ValueError(msg)

    @property
    def n_diagonal(self) -> int:
        """Number of first steps in which the covariance stays diagonal."""
        return round(DIAGONAL_SHARE * self.n_steps)


def refine(
    vae: ContrastiveVAE, batch: CellBatch, settings: Refinement | None = None
) -> RefinedPosterior:
    """Maximise the ELBO of each cell over a normal posterior of its own, the decoder fixed.

    It starts at the guide's mean and covariance, but with standard deviations of at least seven
    tenths of the prior's. From a narrow start, as that of a guide that is sure and wrong, it takes
    many more steps, and may end at a lesser mode.

    Cells do not influence each other, nor do the cells beside them: the noise of a cell follows
    from its own counts, so that its posterior is the same, up to rounding, in any mini-batch, and
    torch's random state is left alone.

    The salient latent of a background cell, which the decoder does not see, keeps the guide's mean
    and variance. Parameters that all cells share are drawn from their posterior in each step.

    Parameters
    ----------
    vae
        The model, which is left unchanged.
    batch
        The cells, with counts.
    settings
        Default: :class:`Refinement`.

    Raises
    ------
    TypeError
        If a latent of the guide is neither real nor positive, or not ``[cells, latents]``.
    """
    given = settings or Refinement()
    with (
        evaluating(vae),
        frozen(vae),
        pyro.validation_enabled(False),
        without_expression(),
        seeded(0),
    ):
        sites, start = guide_normal(vae, batch)
        noise = _Noise(batch, sites)
        target = _Target(vae, batch, sites, given.n_pairs)
        state = widened(start, prior_widths(vae, batch, sites), noise.free)
        for step in range(given.n_steps):
            pairs = noise.pairs(given.n_pairs)
            found = target.responses(state, pairs)
            state = improve(state, *found, pairs, step, given.n_diagonal)
        judging = _Target(vae, batch, sites, N_JUDGING_PAIRS)
        pairs = noise.pairs(N_JUDGING_PAIRS)
        before, after = (judging.elbo(found, pairs) for found in (start, state))
    is_refined = after.isfinite() & ~(after <= before)  # also where there was no ELBO before
    failed = (state.failed | ~after.isfinite()) & ~is_refined
    mean = torch.where(is_refined[:, None], state.mean, start.mean)
    factor = torch.where(is_refined[:, None, None], state.factor, start.factor)
    return RefinedPosterior(sites, mean, factor, is_refined, failed)


class _Target:
    """log p(x, u) of some cells, at several vectors of latents u each.

    The vectors are folded into the plate of cells, where the program is fastest.
    """

    def __init__(self, vae: ContrastiveVAE, batch: CellBatch, sites: Sites, n_pairs: int) -> None:
        cells = torch.arange(len(batch), device=batch.condition.device)
        self.copies = batch.take(cells.repeat(2 * n_pairs))
        self.vae, self.batch, self.sites = vae, batch, sites
        self.n_calls = 0
        self.has_shared = bool(shared_sites(draw_posterior(vae, batch)).nodes)

    def log_density(self, vectors: Tensor) -> Tensor:
        """Evaluate it at ``[copies, cells, latents]``: ``[copies, cells]``."""
        values = self.sites.values(vectors.flatten(0, 1)) | self._shared()
        model = poutine.condition(self.vae.model, data=values)
        with SalientOfTargets(self.copies.is_target):
            trace = poutine.trace(model).get_trace(self.copies)
        trace.compute_log_prob()
        terms = [site["log_prob"] for site in trace.nodes.values() if has_density(site)]
        total = torch.stack([term.expand(len(self.copies)) for term in terms]).sum(0)
        return total.reshape(vectors.shape[:2]) + self.sites.log_jacobian(vectors)

    def responses(self, state: State, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean gradient of -log p, and half its difference over each pair.

        Their shapes are ``[cells, latents]`` and ``[pairs, cells, latents]``.
        """
        vectors = state.at(pairs).requires_grad_()
        with torch.enable_grad():
            loss = -self.log_density(vectors).sum()
            (gradients,) = torch.autograd.grad(loss, vectors)
        above, below = gradients.chunk(2)
        return gradients.mean(0), (above - below) / 2

    def elbo(self, state: State, pairs: Tensor) -> Tensor:
        """Estimate the ELBO of each cell up to a constant, ``[cells]``."""
        log_volume = state.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.log_density(state.at(pairs)).mean(0) + log_volume

    def _shared(self) -> dict[str, Tensor]:
        """Draw what all cells share: the same in the same step of every mini-batch."""
        if not self.has_shared:
            return {}
        self.n_calls += 1
        with seeded(self.n_calls):
            shared = shared_sites(draw_posterior(self.vae, self.batch))
        return {name: site["value"][0] for name, site in shared.nodes.items()}


class _Noise:
    """Standard normal noise for each cell, which follows from the cell itself.

    Rows of one table are used in turn, from a row given by the cell's total. They are orthogonal in
    blocks, so that every direction is visited as soon as possible. The noise is 0 in latents that
    have no part in the density: s of background cells.
    """

    def __init__(self, batch: CellBatch, sites: Sites) -> None:
        like = batch.observed[X].row_totals()
        if like is None:
            msg = "Refinement needs observed counts: these cells have none."
            raise ValueError(msg)
        self.table = _orthogonal_rows(sites.n_latents).to(like)
        key = (like[:, 0].double() * 1000).round().long()
        self.row = (key * 2654435761 >> 16) % NOISE_ROWS  # Knuth's multiplicative hashing
        self.free = torch.ones_like(batch.is_target).unsqueeze(-1).repeat(1, sites.n_latents)
        if SALIENT in sites.widths:
            self.free[:, sites.slices()[SALIENT]] = batch.is_target.unsqueeze(-1)

    def pairs(self, n_pairs: int) -> Tensor:
        """Return noise for one end of each pair, ``[pairs, cells, latents]``."""
        rows = torch.stack([self.row + pair for pair in range(n_pairs)]) % NOISE_ROWS
        self.row = self.row + n_pairs
        return torch.where(self.free, self.table[rows], 0.0)


@cache
def _orthogonal_rows(n_latents: int) -> Tensor:
    """Return standard normal vectors ``[NOISE_ROWS, n_latents]``, orthogonal in each full block."""
    generator = torch.Generator().manual_seed(0)
    n_blocks = -(-NOISE_ROWS // n_latents)
    normals = torch.randn(2, n_blocks, n_latents, n_latents, generator=generator)
    directions, triangle = torch.linalg.qr(normals[0])
    # With these signs the directions are uniform (Mezzadri, Notices of the AMS 54, 2007).
    directions = directions * triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    lengths = normals[1].norm(dim=-1, keepdim=True)
    return (directions.mT * lengths).flatten(0, 1)[:NOISE_ROWS]
