r"""The difference between sides of the log rates of donors, with donors as the unit.

The log rates of a gene (:mod:`~pyro_contrastive.analysis.means.donor_rates`) are a linear model,

.. math:: y_{ug} = b_g c_u + \text{blocks} + d_{ug}, \qquad
    \mathrm{var}(d_{ug}) = \sigma_g^2 (\tau^2 + v_{ug})

c is the side and v the variance from sampling cells, so that donors of few cells count less;
:math:`\tau^2` is the typical variance between donors, the same for all genes, and
:math:`\sigma_g^2` what this gene has more or less of, close to 1, and squeezed over genes
(:mod:`~pyro_contrastive.analysis.means.moderation`).

*Nested* designs compare donors with donors. *Paired* ones compare within donors: y is the
difference of a donor's sides. In *mixed* ones, where only some donors are on both sides, a donor's
own level is a random effect with variance :math:`\omega^2`: :math:`\tau^2` and :math:`\omega^2` are
those of the largest restricted likelihood, summed over genes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive.analysis.means.donor_rates import DonorRates
from pyro_contrastive.analysis.means.moderation import squeeze

__all__ = ["Design", "DonorFit", "design_of", "fit_donors"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
Design = Literal["paired", "nested", "mixed"]

MOST_GENES = 2000
"""Genes that the common variance between donors is learned from: every so many-th one."""
SMALLEST_VARIANCE, LARGEST_VARIANCE = 1e-5, 30.0
SHARES_OF_DONORS = np.linspace(0, 0.95, 20)
"""Shares of the variance between samples that donors may have: :math:`\\omega^2` over the sum."""


class DonorFit(NamedTuple):
    """Natural log ratio of side 1 and side 0.

    Parameters
    ----------
    value, standard_error
        ``[genes]``.
    df
        Degrees of freedom of the t-statistic.
    """

    value: Array
    standard_error: Array
    df: float


class _Rows(NamedTuple):
    """Rows of the linear model: values and variances from cells, ``[rows, genes]``, and design.

    `partner` is the row of the same donor on the other side, or -1; ``[rows]``.
    """

    value: Array
    variance: Array
    design: Array  # [rows, columns]; the first is the side
    partner: Codes


def design_of(donor: Codes, side: Codes) -> Design:
    """Return how donors are spread over the two sides."""
    n_both = len(np.intersect1d(donor[side == 0], donor[side == 1]))
    if n_both == 0:
        return "nested"
    return "paired" if n_both == len(np.unique(donor)) else "mixed"


def fit_donors(rates: DonorRates, enough: NDArray[np.bool_]) -> DonorFit:
    """Estimate the log ratio of every gene.

    Parameters
    ----------
    rates
        Log rates of the samples.
    enough
        Genes with enough counts, ``[genes]``: variances are squeezed towards theirs.

    Raises
    ------
    ValueError
        If nothing is left to say how much donors differ, or donors and sides cannot be told apart.
    """
    rows = _rows(rates)
    df = len(rows.design) - rows.design.shape[1]
    if df < 1:
        msg = (
            f"There are {len(rows.design)} donors or pairs, and as many effects of batches and "
            "condition: nothing is left to say how much donors differ. Register no batch_key, or "
            "one with fewer levels."
        )
        raise ValueError(msg)
    learned = np.flatnonzero(enough)
    learned = learned[:: max(1, len(learned) // MOST_GENES)]
    common = _common_variances(rows, learned, df)
    value, unscaled, scale = _least_squares(*_whitened(rows, *common), df)
    squeezed = squeeze(scale[enough], df)
    variance = scale.copy()
    variance[enough] = squeezed.variance
    return DonorFit(value, np.sqrt(variance * unscaled), squeezed.df)


def _rows(rates: DonorRates) -> _Rows:
    """Return one row per sample, or per donor where all are paired."""
    components = (rates.component[:, None] == np.unique(rates.component)).astype(float)
    side = rates.side.astype(float)[:, None]
    order = np.lexsort((rates.side, rates.donor))
    same = np.flatnonzero(np.diff(rates.donor[order]) == 0)
    first, second = order[same], order[same + 1]  # side 0 and side 1 of donors on both
    if design_of(rates.donor, rates.side) == "paired":
        return _Rows(
            rates.value[second] - rates.value[first],
            rates.variance[second] + rates.variance[first],
            _full_rank(side[second], components[second] - components[first]),
            np.full(len(first), -1),
        )
    partner = np.full(len(side), -1)
    partner[first], partner[second] = second, first
    return _Rows(rates.value, rates.variance, _full_rank(side, components), partner)


def _full_rank(side: Array, others: Array) -> Array:
    """Return the side, and the columns beside it that are no combination of those before.

    Raises
    ------
    ValueError
        If the side is itself a combination of the others.
    """
    kept = np.zeros((len(side), 0))
    for column in others.T[:, :, None]:
        if np.linalg.matrix_rank(np.hstack([kept, column])) > kept.shape[1]:
            kept = np.hstack([kept, column])
    if np.linalg.matrix_rank(np.hstack([kept, side])) == kept.shape[1]:
        msg = (
            "The condition cannot be told from the batches: no donor of one condition has cells "
            "in a stratum and batch of another's. Register another batch_key, or none."
        )
        raise ValueError(msg)
    return np.hstack([side, kept])


def _whitened(rows: _Rows, between: float, of_donor: float) -> tuple[Array, Array]:
    """Divide rows by their standard deviations: values ``[genes, rows]`` and designs.

    The second of a donor's two samples is freed of what the first says of it (Cholesky).
    """
    variance, later, slope = _given_partners(rows, between, of_donor)
    y, x = (
        rows.value,
        np.broadcast_to(rows.design[:, :, None], (*rows.design.shape, slope.shape[1])),
    )
    if len(later):
        earlier = rows.partner[later]
        y, x = y.copy(), x.copy()
        y[later] -= slope * y[earlier]
        x[later] -= slope[:, None] * x[earlier]
    root = np.sqrt(variance)
    return (y / root).T, np.transpose(x / root[:, None], (2, 0, 1))


def _given_partners(rows: _Rows, between: float, of_donor: float) -> tuple[Array, Codes, Array]:
    """Variance of each row given the earlier row of its donor; the later rows, and their slopes."""
    variance = between + of_donor + rows.variance
    later = np.flatnonzero((rows.partner >= 0) & (rows.partner < np.arange(len(variance))))
    slope = of_donor / variance[rows.partner[later]]
    variance[later] -= slope * of_donor
    return variance, later, slope


def _least_squares(y: Array, x: Array, df: int) -> tuple[Array, Array, Array]:
    """Coefficient of the side, its variance up to the scale, and the scale; each ``[genes]``."""
    inverse = np.linalg.inv(np.swapaxes(x, 1, 2) @ x)
    coefficients = inverse @ (np.swapaxes(x, 1, 2) @ y[:, :, None])
    residual = (y[:, :, None] - x @ coefficients)[:, :, 0]
    scale = np.asarray((residual**2).sum(1) / df)
    return coefficients[:, 0, 0], np.asarray(inverse[:, 0, 0]), scale


def _common_variances(rows: _Rows, genes: Codes, df: int) -> tuple[float, float]:
    """Variances between samples and between donors that fit most genes."""
    some = rows._replace(value=rows.value[:, genes], variance=rows.variance[:, genes])
    if not (rows.partner >= 0).any():
        return _typical(some, 0.0, df), 0.0
    totals = [_typical(some, share, df) for share in SHARES_OF_DONORS]
    pairs = [
        (float((1 - share) * total), float(share * total))
        for share, total in zip(SHARES_OF_DONORS, totals, strict=True)
    ]
    return max(pairs, key=lambda pair: _restricted_likelihood(some, pair[0], pair[1], df))


def _typical(rows: _Rows, share: float, df: int) -> float:
    """Variance with which the scale of the median gene is that of a chi-squared: by bisection."""
    from scipy.stats import chi2  # noqa: PLC0415  # slow to import

    goal = chi2.median(df) / df
    low, high = np.log(SMALLEST_VARIANCE), np.log(LARGEST_VARIANCE)
    for _ in range(20):
        middle = (low + high) / 2
        total = np.exp(middle)
        scale = _least_squares(*_whitened(rows, (1 - share) * total, share * total), df)[2]
        low, high = (middle, high) if np.median(scale) > goal else (low, middle)
    return float(np.exp((low + high) / 2))


def _restricted_likelihood(rows: _Rows, between: float, of_donor: float, df: int) -> float:
    """Restricted log-likelihood, summed over genes, each with its best scale."""
    y, x = _whitened(rows, between, of_donor)
    scale = _least_squares(y, x, df)[2]
    information = np.linalg.slogdet(np.swapaxes(x, 1, 2) @ x)[1]
    log_det = np.log(_given_partners(rows, between, of_donor)[0]).sum(0)
    return float(-(df * np.log(scale) + log_det + information).sum() / 2)
