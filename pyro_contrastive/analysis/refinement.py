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
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from pyro_contrastive._tools.site_moments import sampled_moments
from pyro_contrastive._tools.torch_tools import evaluating, frozen, seeded
from pyro_contrastive.analysis.prior_widths import prior_widths
from pyro_contrastive.analysis.refined_posterior import RefinedPosterior, Sites, times
from pyro_contrastive.analysis.runs import draw_posterior, run_model, shared_sites
from pyro_contrastive.cells import CellBatch, X
from pyro_contrastive.guide import Moments
from pyro_contrastive.model import CELLS, SALIENT, without_expression
from pyro_contrastive.sites import SalientOfTargets, is_local
from pyro_contrastive.vae import ContrastiveVAE

__all__ = ["Refinement", "guide_moments", "refine"]

DIAGONAL_SHARE = 0.3
"""Share of the steps in which the covariance stays diagonal. With a full one from the start, about
one cell in a hundred diverges."""
DIAGONAL_RATE, FULL_RATE, MEAN_RATE = 0.5, 0.6, 0.8
CURVATURE_LIMITS = (0.4, 2.5)
"""Smallest and largest factor by which a step may change the precision in any direction."""
LONGEST_STEP = 3.0
"""Longest step of the mean, in standard deviations of the posterior."""
START_WIDTH = 0.7
"""Smallest standard deviation at the start, in those of the prior. With 0.5 more cells simulated
from the prior have a Pareto k above 0.7; with 1, a few in a hundred are not there in 30 steps."""
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
        sites, start = _start(vae, batch)
        noise = _Noise(batch, sites)
        target = _Target(vae, batch, sites, given.n_pairs)
        state = _widened(start, prior_widths(vae, batch, sites), noise.free)
        for step in range(given.n_steps):
            pairs = noise.pairs(given.n_pairs)
            state = _improve(state, *target.responses(state, pairs), pairs, step, given)
        judging = _Target(vae, batch, sites, N_JUDGING_PAIRS)
        pairs = noise.pairs(N_JUDGING_PAIRS)
        before, after = (judging.elbo(found, pairs) for found in (start, state))
    is_refined = after.isfinite() & ~(after <= before)  # also where there was no ELBO before
    failed = (state.failed | ~after.isfinite()) & ~is_refined
    mean = torch.where(is_refined[:, None], state.mean, start.mean)
    factor = torch.where(is_refined[:, None, None], state.factor, start.factor)
    return RefinedPosterior(sites, mean, factor, is_refined, failed)


class _State(NamedTuple):
    """Normal posteriors during refinement: see :class:`RefinedPosterior`."""

    mean: Tensor
    factor: Tensor
    failed: Tensor

    def at(self, noise: Tensor) -> Tensor:
        """Return the vectors of latents at the two ends of each pair, ``[2 * pairs, cells, .]``."""
        moved = times(self.factor, noise)
        return torch.cat([self.mean + moved, self.mean - moved])


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
        terms = [site["log_prob"] for site in trace.nodes.values() if _has_density(site)]
        total = torch.stack([term.expand(len(self.copies)) for term in terms]).sum(0)
        return total.reshape(vectors.shape[:2]) + self.sites.log_jacobian(vectors)

    def responses(self, state: _State, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean gradient of -log p, and half its difference over each pair.

        Their shapes are ``[cells, latents]`` and ``[pairs, cells, latents]``.
        """
        vectors = state.at(pairs).requires_grad_()
        with torch.enable_grad():
            loss = -self.log_density(vectors).sum()
            (gradients,) = torch.autograd.grad(loss, vectors)
        above, below = gradients.chunk(2)
        return gradients.mean(0), (above - below) / 2

    def elbo(self, state: _State, pairs: Tensor) -> Tensor:
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


def _improve(
    state: _State, gradient: Tensor, difference: Tensor, noise: Tensor, step: int, given: Refinement
) -> _State:
    """Take one natural-gradient step; cells whose gradient is not finite stay where they are."""
    finite = gradient.isfinite().all(-1) & difference.isfinite().all(-1).all(0)
    gradient = torch.where(finite.unsqueeze(-1), gradient, 0.0)
    transposed = state.factor.mT
    response = times(transposed, difference)  # should equal the noise
    response = torch.where(finite.unsqueeze(-1), response, noise)
    if step < given.n_diagonal:
        rate = DIAGONAL_RATE * 4 / (4 + step)
        excess = ((response - noise) * noise).mean(0)
        change = torch.diag_embed((1 + rate * excess).clamp(*CURVATURE_LIMITS).rsqrt())
    else:
        rate = FULL_RATE / (1 + (step - given.n_diagonal) / 10)
        change = _inverse_root(_curvature(response, noise, rate))
    factor = state.factor @ change
    whitened = times(factor.mT, gradient)
    length = whitened.norm(dim=-1, keepdim=True)
    move = times(factor, whitened) * (LONGEST_STEP / length.clamp(min=LONGEST_STEP))
    mean = state.mean - MEAN_RATE * 6 / (6 + step) * move
    return _State(mean, factor, state.failed | ~finite)


def _curvature(response: Tensor, noise: Tensor, rate: float) -> Tensor:
    """Precision in units of the present one, ``[cells, latents, latents]``, from each pair in turn.

    The Powell-symmetric-Broyden update (Dennis & Schnabel, Numerical Methods for Unconstrained
    Optimization, 1983, section 9.1), damped by `rate`.
    """
    n_cells, n_latents = noise.shape[1:]
    curvature = torch.eye(n_latents).to(noise).expand(n_cells, -1, -1)
    for e, found in zip(noise, response, strict=True):
        left = found - times(curvature, e)
        squared = e.square().sum(-1)[:, None, None]
        outer = left.unsqueeze(-1) * e.unsqueeze(-2)
        along = (left * e).sum(-1)[:, None, None] / squared
        both = e.unsqueeze(-1) * e.unsqueeze(-2)
        curvature = curvature + rate * (outer + outer.mT - along * both) / squared
    return curvature


def _inverse_root(curvature: Tensor) -> Tensor:
    """Lower-triangular root of the inverse, its eigenvalues kept within the limits."""
    values, vectors = torch.linalg.eigh(curvature)
    inverse = (vectors / values.clamp(*CURVATURE_LIMITS).unsqueeze(-2)) @ vectors.mT
    return torch.linalg.cholesky(inverse)


def _has_density(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and not site_is_subsample(site) and is_local(site)


def guide_moments(vae: ContrastiveVAE, batch: CellBatch) -> dict[str, Moments]:
    """Mean and variance of each latent under the guide, of the log of a positive one.

    Each ``[cells, latents]``, by site.
    """
    with evaluating(vae), seeded(0):
        return _moments(vae, batch, _sites(vae, batch))


def _start(vae: ContrastiveVAE, batch: CellBatch) -> tuple[Sites, _State]:
    """Return the latents, and a normal with the guide's mean and covariance."""
    sites = _sites(vae, batch)
    never = torch.zeros_like(batch.is_target)
    if tuple(sites.widths) == vae.guide.sites:
        return sites, _State(*vae.guide.normal(batch), never)
    moments = _moments(vae, batch, sites)
    mean = torch.cat([moments[site][0] for site in sites.widths], -1)
    sd = torch.cat([moments[site][1] for site in sites.widths], -1).sqrt()
    return sites, _State(mean, torch.diag_embed(sd), never)


def _widened(start: _State, widths: Tensor, free: Tensor) -> _State:
    """Widen narrow normals where the latents are free; correlations stay as they are."""
    sd = start.factor.square().sum(-1).sqrt()
    ratio = (START_WIDTH * widths / sd).clamp(min=1.0)
    wider = torch.where(free, ratio, 1.0)
    return start._replace(factor=wider.unsqueeze(-1) * start.factor)


def _sites(vae: ContrastiveVAE, batch: CellBatch) -> Sites:
    """Return the latents of the guide, by running it and the model."""
    drawn = draw_posterior(vae, batch)
    widths = {}
    for name, site in drawn.nodes.items():
        if not _has_density(site):
            continue
        if site["value"].shape[:-1] != (1, len(batch)):
            msg = (
                f"Refinement needs latents of shape [cells, latents]; the site {name!r} of the "
                f"guide has a value of shape {list(site['value'].shape[1:])}."
            )
            raise TypeError(msg)
        widths[name] = site["value"].shape[-1]
    model = run_model(vae, batch, drawn).nodes
    positive = {name for name in widths if _is_positive(name, model[name]["fn"].support)}
    return Sites(widths, frozenset(positive))


def _is_positive(name: str, support: Any) -> bool:
    """Tell a positive latent from a real one, refusing any other."""
    # Of independent dimensions, and of the components of a mixture.
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support in {constraints.real, constraints.real_vector}:
        return False
    if support in {constraints.positive, constraints.nonnegative}:  # the latter: a gamma's
        return True
    msg = (
        f"Refinement needs latents that are real or positive numbers; the prior of the site "
        f"{name!r} has the support {support}."
    )
    raise TypeError(msg)


def _moments(vae: ContrastiveVAE, batch: CellBatch, sites: Sites) -> dict[str, Moments]:
    """Mean and variance of each latent under the guide, of the log of a positive one."""
    found = vae.guide.marginals(batch)
    if found.keys() >= sites.widths.keys():
        return found
    # A model of the user's own may have further latents.
    return sampled_moments(vae.guide, batch, CELLS, sites.positive)
