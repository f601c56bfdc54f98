"""The mean of an effect over samples, such as donors, with samples as replicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive.analysis.means.group_effect import GroupEffect

__all__ = ["over_pairs", "over_two_sets"]

Array = NDArray[np.float64]
TWO = 2
"""Samples it takes for a variance between them."""


@dataclass(frozen=True)
class _Mean:
    """Mean over samples, its variance, and the number of samples, each ``[genes]``."""

    value: Array
    variance: Array
    n: NDArray[np.int64]

    @classmethod
    def of(cls, effects: Sequence[GroupEffect]) -> _Mean:
        lfc = np.array([effect.lfc for effect in effects])  # [samples, genes]
        there = np.isfinite(lfc)
        n = there.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = np.where(there, lfc, 0.0).sum(0) / n
            squares = np.where(there, lfc - value, 0.0) ** 2
            variance = squares.sum(0) / (n - 1) / n
        return cls(value, np.where(n >= TWO, variance, np.nan), n)


def over_pairs(effects: Sequence[GroupEffect], interval: float) -> GroupEffect:
    """Average effects on samples that hold both kinds of cells; the interval is Student's.

    Parameters
    ----------
    effects
        Effects on the samples, each compared with itself.
    interval
        Coverage of the interval.
    """
    mean = _Mean.of(effects)
    return _averaged(
        effects,
        mean,
        lfc=mean.value,
        half=_quantile(interval, mean.n - 1) * np.sqrt(mean.variance),
        background_mean=np.mean([effect.background_mean for effect in effects], axis=0),
        n_background_cells=sum(effect.n_background_cells for effect in effects),
        no_interval=np.where(mean.n < TWO, "one sample: no interval over samples", ""),
    )


def over_two_sets(
    treated: Sequence[GroupEffect], untreated: Sequence[GroupEffect], interval: float
) -> GroupEffect:
    """Difference of the means of treated and of untreated samples; the interval is Welch's.

    Parameters
    ----------
    treated, untreated
        Treated cells of some samples, and background cells of some, each compared with the
        background cells of all samples.
    interval
        Coverage of the interval.
    """
    one, other = _Mean.of(treated), _Mean.of(untreated)
    variance = one.variance + other.variance
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = variance**2 / (one.variance**2 / (one.n - 1) + other.variance**2 / (other.n - 1))
    no_interval = np.where(other.n < TWO, "one sample with background cells: no interval", "")
    no_interval = np.where(one.n < TWO, "one sample with treated cells: no interval", no_interval)
    return _averaged(
        treated,
        one,
        lfc=one.value - other.value,
        half=_quantile(interval, freedom) * np.sqrt(variance),
        background_mean=np.mean([effect.treated_mean for effect in untreated], axis=0),
        n_background_cells=sum(effect.n_cells for effect in untreated),
        no_interval=no_interval,
    )


def _averaged(
    treated: Sequence[GroupEffect],
    mean: _Mean,
    *,
    lfc: Array,
    half: Array,
    background_mean: Array,
    n_background_cells: int,
    no_interval: NDArray[Any],
) -> GroupEffect:
    why_none = np.array([effect.not_estimated for effect in treated])[0]
    return GroupEffect(
        sample=None,
        lfc=lfc,
        lower=lfc - half,
        upper=lfc + half,
        treated_mean=np.mean([effect.treated_mean for effect in treated], axis=0),
        background_mean=background_mean,
        model_lfc=np.mean([effect.model_lfc for effect in treated], axis=0),
        n_cells=sum(effect.n_cells for effect in treated),
        n_background_cells=n_background_cells,
        n_strata=max(effect.n_strata for effect in treated),
        n_samples=mean.n,
        compared_with=treated[0].compared_with,
        not_estimated=np.where(np.isfinite(lfc), no_interval, why_none),
    )


def _quantile(interval: float, freedom: Array | NDArray[np.int64]) -> Array:
    from scipy.stats import t  # noqa: PLC0415  # slow to import

    with np.errstate(invalid="ignore"):
        return np.asarray(t.ppf((1 + interval) / 2, np.where(freedom > 0, freedom, np.nan)))
