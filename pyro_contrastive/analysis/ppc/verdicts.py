"""How large a misfit is, and whether it matters: effect sizes and verdicts on rows of a check.

An interval of replicates of thousands of cells is narrow, so that nearly every statistic of real
data lies outside of it. Whether the difference matters is another question, which its size answers:

========================================================  ==================  ======  ======
statistic                                                 difference          close   look
========================================================  ==================  ======  ======
means, variances, totals and others that are positive     relative            5 %     20 %
shares: zero fractions, coverage                          of the shares       .01     .05
correlations                                              of the correlations .05     .20
effects of treatments                                     of log2 changes     .05     .25
========================================================  ==================  ======  ======

Up to the first number the fit is ``"close"``, up to the second ``"look"`` (look whether it matters
for your question), beyond it is ``"off"``. The numbers are rules of thumb: 5 % is less than the
error of most measurements, .25 on the log2 scale the smallest change that is usually reported.
Data within the interval of the replicates are ``"close"`` whatever the size, because then it may be
chance. Differences of genes in both directions cancel in an average. So what counts is the larger
one of that difference and of the mean distance by which genes (cells, pairs) lie outside of their
own intervals.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["VERDICTS", "with_verdicts"]

VERDICTS = ("close", "look", "off")
THRESHOLDS = {
    "relative": (0.05, 0.20),
    "share": (0.01, 0.05),
    "correlation": (0.05, 0.20),
    "log2": (0.05, 0.25),
}
"""Largest absolute differences that are called close, and that are worth a look."""
KINDS = {
    "zero_fraction": "share",
    "zero_fraction_trend": "share",
    "abs_correlation": "correlation",
    "effect_agreement": "correlation",
    "abs_log2_fold_change": "log2",
}


def with_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns ``difference``, ``difference_in`` and ``verdict``.

    Parameters
    ----------
    table
        Rows of statistics of whole groups of cells, as in the table `overall` of a check.

    Returns
    -------
    The table with ``difference``, data less replicates, in the unit ``difference_in`` (see the
    module); missing where the statistic is not defined, and for statistics without a natural size:
    those that may be negative. The verdict on these is ``"look"`` if the data lie outside of the
    interval. It is empty where there is nothing to compare.
    """
    observed, expected = (
        table[name].to_numpy(dtype=float) for name in ("observed", "replicate_mean")
    )
    kinds = np.array([_kind(str(name)) for name in table["statistic"]], dtype=object)
    relative = kinds == "relative"
    size = observed - expected
    positive = relative & (expected > 0) & (observed >= 0)
    apart_by = np.zeros(len(table))
    if "outside_by" in table:
        apart_by += table["outside_by"].to_numpy(dtype=float)
    for sizes in (size, apart_by):
        sizes[positive] /= expected[positive]
        sizes[relative & ~positive] = np.nan
    verdict = _verdicts(table, kinds, size, np.nan_to_num(apart_by))
    verdict[~(np.isfinite(observed) & np.isfinite(expected))] = ""
    kinds[~np.isfinite(size)] = ""
    return table.assign(difference=size, difference_in=kinds, verdict=verdict)


def _kind(statistic: str) -> str:
    return "share" if statistic.startswith("coverage ") else KINDS.get(statistic, "relative")


def _verdicts(
    table: pd.DataFrame, kinds: NDArray[Any], size: NDArray[np.float64], apart: NDArray[np.float64]
) -> NDArray[np.object_]:
    """Grade each row by the size of its difference, if it is more than chance."""
    observed, lower, upper = (
        table[name].to_numpy(dtype=float) for name in ("observed", "lower", "upper")
    )
    chance = (observed >= lower) & (observed <= upper)
    largest = np.maximum(np.where(chance, 0.0, np.abs(size)), apart)
    close, look = (np.array([THRESHOLDS[kind][k] for kind in kinds]) for k in (0, 1))
    grade = np.where(largest <= close, 0, np.where(largest <= look, 1, 2))
    grade[np.isnan(largest)] = 1
    return np.asarray(VERDICTS, dtype=object)[grade]
