r"""Pareto smoothed importance sampling: how far importance weights can be trusted, and their mean.

Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto smoothed importance sampling", JMLR 25(72), 2024.
Written in NumPy, so that it needs no optional package; tested against ArviZ's ``psislw``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Smoothed", "check_draws", "k_threshold", "smooth"]

Array = NDArray[np.float64]

MIN_DRAWS = 25
"""Draws needed to judge a tail, which is the largest fifth of them: at least 5."""
_SMALLEST_TAIL = 5
_NO_SPREAD = 1e-9
_SMALLEST_LOG = math.log(np.finfo(float).tiny)
# Zhang & Stephens, "A new and efficient estimation method for the generalized Pareto distribution",
# Technometrics 51, 2009: the scale of the prior of theta; Vehtari et al. 2024, appendix C: the
# shape is pulled towards 0.5 with the weight of ten observations.
_THETA_PRIOR = 3.0
_SHAPE_PRIOR, _SHAPE_PRIOR_WEIGHT = 0.5, 10.0


@dataclass(frozen=True)
class Smoothed:
    r"""Smoothed importance weights of some cells.

    Parameters
    ----------
    log_weights
        Logarithms of the weights, ``[cells, draws]``. The largest are replaced by the expected
        order statistics of the generalised Pareto distribution fitted to them, cut off at the
        largest original weight.
    k
        Shape of that distribution, ``[cells]``: the weights have finite moments up to order 1/k.
        0 where all draws weigh the same, so that there is no tail; infinite where too few of the
        largest weights differ for a fit.
    """

    log_weights: Array
    k: Array

    @property
    def log_mean(self) -> Array:
        """Logarithm of the mean weight of each cell, ``[cells]``: an estimate of log p(x)."""
        n_draws = self.log_weights.shape[1]
        return np.asarray(_logsumexp(self.log_weights) - math.log(n_draws))


def check_draws(n_samples: int) -> None:
    """Refuse too few draws to judge a tail, before any is made.

    Raises
    ------
    ValueError
        If there are fewer than 25.
    """
    if n_samples < MIN_DRAWS:
        msg = (
            f"n_samples must be at least {MIN_DRAWS}, not {n_samples}: the tail of fewer "
            "importance weights cannot be judged."
        )
        raise ValueError(msg)


def k_threshold(n_draws: int) -> float:
    r"""Return the k above which this number of draws is too small.

    .. math:: \min(1 - 1 / \log_{10} M,\; 0.7)

    for M draws (Vehtari et al. 2024, section 3.2.4). Below it the error of the estimate behaves as
    that of a mean with finite variance; above 0.7 no affordable number of draws is enough. It is
    0.7 from 2,200 draws on.

    Parameters
    ----------
    n_draws
        Number of draws, at least 11.

    Examples
    --------
    >>> k_threshold(1000), k_threshold(100_000)
    (0.6666666666666667, 0.7)
    """
    return min(1 - 1 / math.log10(n_draws), 0.7)


def smooth(log_weights: Array) -> Smoothed:
    """Smooth the largest importance weights of each cell, and measure how heavy their tail is.

    Parameters
    ----------
    log_weights
        Logarithms of the weights of independent draws, ``[cells, draws]``, up to a constant.

    Raises
    ------
    ValueError
        If they are not a matrix, have fewer than 25 draws, or hold a NaN or an infinite number.
    """
    raw = np.asarray(log_weights, dtype=float)
    if raw.ndim != 2 or raw.shape[1] < MIN_DRAWS:  # noqa: PLR2004  # a matrix
        msg = (
            f"log_weights must be [cells, draws] with at least {MIN_DRAWS} draws, not "
            f"{list(raw.shape)}: the tail of fewer cannot be judged."
        )
        raise ValueError(msg)
    bad = ~np.isfinite(raw).all(axis=1)
    if bad.any():
        msg = (
            f"{int(bad.sum())} cells have importance weights that are not finite, the first of "
            f"them is number {int(bad.argmax())}: a draw has no density under the model."
        )
        raise ValueError(msg)
    rows = [_smooth_row(row) for row in raw]
    smoothed = np.array([weights for weights, _ in rows]).reshape(raw.shape)
    return Smoothed(smoothed, np.array([k for _, k in rows]))


def _smooth_row(log_weights: Array) -> tuple[Array, float]:
    """Smooth the weights of one cell, ``[draws]``; return them and the shape of their tail."""
    n_draws = len(log_weights)
    largest = log_weights.max()
    relative = log_weights - largest
    if np.ptp(relative) < _NO_SPREAD:
        return log_weights, 0.0
    n_tail = math.ceil(min(n_draws / 5, 3 * math.sqrt(n_draws)))
    cutoff = max(np.partition(relative, -n_tail - 1)[-n_tail - 1], _SMALLEST_LOG)
    tail = np.flatnonzero(relative > cutoff)
    if len(tail) < _SMALLEST_TAIL:  # ties
        return log_weights, math.inf
    tail = tail[np.argsort(relative[tail])]
    shape, scale = _fit_pareto(np.exp(relative[tail]) - np.exp(cutoff))
    if not math.isfinite(shape):
        return log_weights, math.inf
    probabilities = (np.arange(len(tail)) + 0.5) / len(tail)
    quantiles = _pareto_quantile(probabilities, shape, scale)
    smoothed = relative.copy()
    smoothed[tail] = np.minimum(np.log(quantiles + np.exp(cutoff)), 0.0)
    return smoothed + largest, shape


def _fit_pareto(excess: Array) -> tuple[float, float]:
    """Fit a generalised Pareto distribution to sorted excesses: shape and scale.

    The estimate of Zhang & Stephens (2009): with theta = shape / -scale the likelihood has one
    parameter left, over which its posterior mean is taken on a grid.
    """
    n = len(excess)
    n_grid = 30 + math.isqrt(n)
    quartile = excess[math.floor(n / 4 + 0.5) - 1]
    steps = 1 - np.sqrt(n_grid / (np.arange(1, n_grid + 1) - 0.5))
    theta = 1 / excess[-1] + steps / (_THETA_PRIOR * quartile)  # [grid]
    shapes = np.log1p(-theta[:, None] * excess).mean(axis=1)
    log_likelihood = n * (np.log(-theta / shapes) - shapes - 1)
    posterior = np.exp(log_likelihood - log_likelihood.max())
    best = float((theta * posterior).sum() / posterior.sum())
    shape = float(np.log1p(-best * excess).mean())
    scale = -shape / best
    weighted = n * shape + _SHAPE_PRIOR_WEIGHT * _SHAPE_PRIOR
    return weighted / (n + _SHAPE_PRIOR_WEIGHT), scale


def _pareto_quantile(probabilities: Array, shape: float, scale: float) -> Array:
    """Quantiles of the generalised Pareto distribution that begins at 0."""
    exponential = -np.log1p(-probabilities)
    if abs(shape) < np.finfo(float).eps:
        return np.asarray(scale * exponential)
    return np.asarray(scale * np.expm1(shape * exponential) / shape)


def _logsumexp(values: Array) -> Array:
    largest = values.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(values - largest).sum(axis=1)) + largest[:, 0])
