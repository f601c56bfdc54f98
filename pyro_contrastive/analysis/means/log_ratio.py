r"""The log ratio of the means of two sides, over strata, with an error that cells' scatter gives.

For gene g, the mean count of cell n of stratum k on side c (0 or 1), with size l, is

.. math:: \mu_{ng} = l_n \exp(a_{gk} + b_g c_n)

The quasi-Poisson estimate of b solves the score equations of a Poisson regression, whatever the
variance. With the intercepts eliminated, those are the equations of a binomial: of the
:math:`Y_{gk}` counts of a stratum, a share

.. math:: p_{gk} = L_{k1} e^{b_g} / (L_{k0} + L_{k1} e^{b_g}), \qquad
    \sum_k (Y_{gk1} - Y_{gk} p_{gk}) = 0

is expected on side 1, with L the sums of sizes. Firth's penalty (Biometrika 80, 1993) keeps the
estimate finite where one side has no counts, and removes its bias of first order. The variance is
the sandwich of the estimating equations (White 1980; Huber 1967), which holds for any variance of
the counts,

.. math:: u_{ng} = (c_n - p_{gk})(x_{ng} - \mu_{ng}), \qquad
    \mathrm{var}(b_g) = \sum_n u_{ng}^2 \Big/ \Big(\sum_k Y_{gk} p_{gk} (1 - p_{gk})\Big)^2

and is a function of sums over cells, so that its cost does not grow with their number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive.analysis.means.group_sums import GroupSums

__all__ = ["LogRatio", "fit_log_ratio", "half_width", "score_statistic"]

Array = NDArray[np.float64]
MAX_STEPS = 50
LONGEST_STEP = 2.0
TOLERANCE = 1e-10
LARGEST = 30.0


@dataclass(frozen=True)
class LogRatio:
    """Natural log ratio of the means of side 1 and side 0, each ``[genes]``.

    Parameters
    ----------
    value, standard_error
        The estimate and its standard error; NaN for genes without counts.
    """

    value: Array
    standard_error: Array


def fit_log_ratio(sums: GroupSums) -> LogRatio:
    """Estimate the log ratio of every gene, and its standard error.

    Parameters
    ----------
    sums
        Sums of strata with cells on both sides.
    """
    n_genes = sums.counts.shape[2]
    b = np.zeros(n_genes)
    seen = sums.counts.sum((0, 1)) > 0
    for _ in range(MAX_STEPS):
        score, information, slope = _score(sums, b)
        # Firth's penalty, half the derivative of the log information.
        with np.errstate(invalid="ignore", divide="ignore"):
            penalised = score + 0.5 * slope / information
            step = np.where(seen & (information > 0), penalised / information, 0.0)
        step = step.clip(-LONGEST_STEP, LONGEST_STEP)
        b = (b + step).clip(-LARGEST, LARGEST)
        if np.abs(step).max(initial=0.0) < TOLERANCE:
            break
    _, information, _ = _score(sums, b)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(_scatter(sums, b)) / information
    return LogRatio(np.where(seen, b, np.nan), np.where(seen, error, np.nan))


def half_width(sums: GroupSums, interval: float) -> float:
    """Half the width of an interval, in standard errors.

    Student's, with as many degrees of freedom as the smaller side has cells beyond one per stratum:
    the scatter of a few cells is itself uncertain, most of all on the smaller side.

    Parameters
    ----------
    sums
        Sums of the strata compared.
    interval
        Coverage.
    """
    from scipy.stats import t  # noqa: PLC0415  # slow to import

    freedom = max(int(sums.n_cells.sum(0).min()) - len(sums.n_cells), 1)
    return float(t.ppf((1 + interval) / 2, freedom))


def score_statistic(sums: GroupSums, b: float | Array = 0.0) -> Array:
    """Score at `b` over its standard deviation, ``[genes]``: standard normal where `b` is true.

    Unlike an estimate over its standard error, it stays close to normal for genes with few counts.
    NaN for genes without counts.
    """
    at = np.broadcast_to(np.asarray(b, dtype=float), sums.counts.shape[2:])
    score, _, _ = _score(sums, at)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(score / np.sqrt(_scatter(sums, at)))


def _share(sums: GroupSums, b: Array) -> Array:
    """Share of the counts of each stratum that side 1 should have, ``[strata, genes]``."""
    odds = np.exp(b) * (sums.sizes[:, 1] / sums.sizes[:, 0])[:, None]
    return np.asarray(odds / (1 + odds))


def _score(sums: GroupSums, b: Array) -> tuple[Array, Array, Array]:
    """Score, information, and the derivative of the information, each ``[genes]``."""
    p = _share(sums, b)
    total = sums.counts.sum(1)
    variance = total * p * (1 - p)
    score = (sums.counts[:, 1] - total * p).sum(0)
    return score, variance.sum(0), (variance * (1 - 2 * p)).sum(0)


def _scatter(sums: GroupSums, b: Array) -> Array:
    """Sum of the squared terms of the score over cells, ``[genes]``.

    Each group of cells is corrected for what its own fitted mean takes from its scatter, as the
    variance of a sample is.
    """
    p = _share(sums, b)
    found = np.zeros(sums.counts.shape[2])
    total = sums.counts.sum(1)
    base = total / (sums.sizes[:, [0]] + sums.sizes[:, [1]] * np.exp(b))  # exp(a), [strata, genes]
    for side in (0, 1):
        rate = base * np.exp(b) ** side
        residual = (
            sums.squares[:, side]
            - 2 * rate * sums.products[:, side]
            + rate**2 * sums.squared_sizes[:, side, None]
        )
        n = sums.n_cells[:, side, None]
        found += ((side - p) ** 2 * residual * n / np.maximum(n - 1, 1)).sum(0)
    return found
