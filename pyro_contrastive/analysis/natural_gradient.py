"""Natural-gradient steps of normal posteriors, many cells at once: see :mod:`.refinement`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_contrastive.analysis.refined_posterior import times

__all__ = ["State", "improve"]

DIAGONAL_RATE, FULL_RATE, MEAN_RATE = 0.5, 0.6, 0.8
CURVATURE_LIMITS = (0.4, 2.5)
"""Smallest and largest factor by which a step may change the precision in any direction."""
LONGEST_STEP = 3.0
"""Longest step of the mean, in standard deviations of the posterior."""


class State(NamedTuple):
    """Normal posteriors during refinement: as in :class:`.RefinedPosterior`."""

    mean: Tensor
    factor: Tensor
    failed: Tensor

    def at(self, noise: Tensor) -> Tensor:
        """Return the vectors of latents at the two ends of each pair, ``[2 * pairs, cells, .]``."""
        moved = times(self.factor, noise)
        return torch.cat([self.mean + moved, self.mean - moved])


def improve(
    state: State, gradient: Tensor, difference: Tensor, noise: Tensor, step: int, n_diagonal: int
) -> State:
    """Take one natural-gradient step; cells whose gradient is not finite stay where they are.

    Parameters
    ----------
    state
        The normals.
    gradient
        Mean gradient of -log p over draws, ``[cells, latents]``.
    difference
        Half the difference of the gradients at the two ends of each pair,
        ``[pairs, cells, latents]``.
    noise
        The standard normal noise of one end of each pair, of the same shape.
    step, n_diagonal
        Number of the step, from 0, and how many there are with a diagonal covariance.
    """
    finite = gradient.isfinite().all(-1) & difference.isfinite().all(-1).all(0)
    gradient = torch.where(finite.unsqueeze(-1), gradient, 0.0)
    transposed = state.factor.mT
    response = times(transposed, difference)  # should equal the noise
    response = torch.where(finite.unsqueeze(-1), response, noise)
    if step < n_diagonal:
        rate = DIAGONAL_RATE * 4 / (4 + step)
        excess = ((response - noise) * noise).mean(0)
        change = torch.diag_embed((1 + rate * excess).clamp(*CURVATURE_LIMITS).rsqrt())
    else:
        rate = FULL_RATE / (1 + (step - n_diagonal) / 10)
        change = _inverse_root(_curvature(response, noise, rate))
    factor = state.factor @ change
    whitened = times(factor.mT, gradient)
    length = whitened.norm(dim=-1, keepdim=True)
    move = times(factor, whitened) * (LONGEST_STEP / length.clamp(min=LONGEST_STEP))
    mean = state.mean - MEAN_RATE * 6 / (6 + step) * move
    return State(mean, factor, state.failed | ~finite)


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
