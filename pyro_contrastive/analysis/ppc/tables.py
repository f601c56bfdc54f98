"""From a statistic of the data and of its replicates to rows of a tidy table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Floats = NDArray[np.float64]

ALL = "all"
"""Name of the group that holds every cell."""
COMPARED = ("observed", "replicate_mean", "lower", "upper", "z", "p_value")
"""Columns that every table of a check has."""


def compare(observed: Floats, replicated: Floats, interval: float) -> dict[str, Floats]:
    """Compare the value of a statistic in the data with those in the replicates.

    Parameters
    ----------
    observed
        ``[units]``: the value of each gene, cell or other unit.
    replicated
        ``[samples, units]``. Replicates in which it is not defined (NaN) are left out.
    interval
        Probability between `lower` and `upper`, equal-tailed.

    Returns
    -------
    `COMPARED`, each ``[units]``: `z` is the distance from the replicates' mean in their standard
    deviations; `p_value` the share of replicates above the data's value, ties counted half:
    (above + ties / 2 + 1/2) / (samples + 1), which is uniform if data and replicates have the same
    distribution, and never 0 or 1. NaN where the statistic is not defined.
    """
    valid = np.isfinite(replicated)
    n = valid.sum(axis=0)
    known = np.isfinite(observed) & (n > 0)
    x, y, valid, n = observed[known], replicated[:, known], valid[:, known], n[known]
    y = np.where(valid, y, 0.0)
    centre = y.sum(axis=0) / n
    squares = (np.square(y - centre) * valid).sum(axis=0)
    deviation = np.sqrt(squares / np.maximum(n - 1, 1))
    lower, upper = _quantiles(np.where(valid, y, np.nan), interval)
    above = ((y > x) & valid).sum(axis=0)
    ties = ((y == x) & valid).sum(axis=0)
    p_value = (above + 0.5 * ties + 0.5) / (n + 1)
    found = (x, centre, lower, upper, _standardised(x - centre, deviation), p_value)
    columns = {}
    for name, values in zip(COMPARED, found, strict=True):
        columns[name] = np.full(len(observed), np.nan)
        columns[name][known] = values
    columns["observed"] = np.asarray(observed, dtype=np.float64)
    return columns


def compare_with_nominal(
    observed: Floats, nominal: Floats, error: Floats, interval: float
) -> dict[str, Floats]:
    """Compare a value with that of a correct model, given its standard error."""
    half = ndtri((1 + interval) / 2) * error
    z = _standardised(observed - nominal, error)
    found = (observed, nominal, nominal - half, nominal + half, z, ndtr(-z))
    return dict(zip(COMPARED, found, strict=True))


def outside(columns: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return which observed values lie outside their interval."""
    observed = np.asarray(columns["observed"])
    return (observed < np.asarray(columns["lower"])) | (observed > np.asarray(columns["upper"]))


def rows(
    statistic: str,
    group: tuple[str, str],
    compared: Mapping[str, Floats],
    **units: Any,
) -> pd.DataFrame:
    """Make rows of a tidy table.

    Parameters
    ----------
    statistic
        Its name.
    group
        Key and value: which cells.
    compared
        The result of :func:`compare`.
    **units
        Further columns: the genes or cells.
    """
    head = {"statistic": statistic, "group_by": group[0], "group": group[1]}
    return pd.DataFrame({**head, **units, **compared})


def overall_row(
    statistic: str,
    unit: str,
    group: tuple[str, str],
    observed: Floats,
    replicated: Floats,
    interval: float,
) -> pd.DataFrame:
    """Make the row of a statistic averaged over units, with how many misfit and by how much.

    Units for which it is not defined, in the data or in a replicate, are left out of the average.
    """
    known = np.isfinite(observed) & np.isfinite(replicated).all(axis=0)
    n = int(known.sum())
    means = observed[None, known].sum(axis=1) / n if n else np.full(1, np.nan)
    spread = replicated[:, known].sum(axis=1) / n if n else np.full(len(replicated), np.nan)
    each = compare(observed[known], replicated[:, known], interval)
    share = float(outside(each).mean()) if n else np.nan
    beyond = np.maximum(each["lower"] - each["observed"], each["observed"] - each["upper"])
    by = float(beyond.clip(0).mean()) if n else np.nan
    made = compare(means, spread[:, None], interval)
    sizes = {"n_units": n, "share_outside": share, "outside_by": by}
    return rows(statistic, group, made, unit=unit, **sizes)


def join(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Join tables, or make an empty one; names become categories, in order of appearance."""
    if not parts:
        return pd.DataFrame(columns=["statistic", "group_by", "group", *COMPARED])
    joined = pd.concat(parts, ignore_index=True)
    for name in joined.columns:
        values = joined[name]
        if not pd.api.types.is_numeric_dtype(values):
            joined[name] = pd.Categorical(values, categories=values.dropna().unique())
    return joined


def _standardised(distance: Floats, deviation: Floats) -> Floats:
    """Distance in standard deviations: 0 for no distance, infinite if nothing varies."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = distance / deviation
    return np.where(distance == 0, 0.0, z)


def _quantiles(y: Floats, interval: float) -> tuple[Floats, Floats]:
    # Weibull's plotting positions: a share k/(n + 1) of the distribution lies below the k-th of n
    # draws, so that the interval has its nominal probability.
    tails = [(1 - interval) / 2, (1 + interval) / 2]
    lower, upper = np.empty(y.shape[1]), np.empty(y.shape[1])
    gaps = np.isnan(y).any(axis=0)
    for chosen, quantile in ((~gaps, np.quantile), (gaps, np.nanquantile)):
        if chosen.any():
            found = quantile(y[:, chosen], tails, axis=0, method="weibull")
            lower[chosen], upper[chosen] = found
    return lower, upper
