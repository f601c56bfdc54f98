r"""Several models compared by their log-likelihood of the same cells.

For each cell n and model, with the parameters that cells share (decoder, dispersions, learned
priors) held at their learned values, this estimates

.. math:: \log p(x_n) = \log \int p(x_n \mid z, s, l)\, p(z)\, p(s)\, p(l)\, dz\, ds\, dl .

The latents of a cell belong to it alone. So leaving the cell out of the data leaves its latents
with their prior, and the leave-one-out predictive density of Vehtari, Gelman & Gabry (Statistics
and Computing 27, 2017) is this integral. Its usual estimate, from draws of the posterior given
every cell, weighs them by :math:`1 / p(x_n \mid z, s, l)`, which turns a posterior of twenty
dimensions back into its prior and practically never succeeds. The guide offers better weights:
drawn from :math:`q(z, s, l \mid x_n)`, the ratio to that prior,
:math:`r = p(z, s, l) / q(z, s, l \mid x_n)`, makes the leave-one-out estimate the mean of

.. math:: w_m = \frac{p(x_n \mid z_m, s_m, l_m)\, p(z_m, s_m, l_m)}{q(z_m, s_m, l_m \mid x_n)} ,

which is the importance-weighted likelihood of Burda et al. (ICLR 2016). It is reported without
smoothing (``"iw"``), and after Pareto smoothing of the weights (``"psis"``; Vehtari et al., JMLR
25, 2024), whose shape k says whether either can be trusted; Yao, Vehtari, Simpson & Gelman (ICML
2018) read the same k as a verdict on q.

The shared parameters are not integrated over. They were learned from the training cells, for which
the value is therefore optimistic: use cells that were held out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.analysis.pareto import k_threshold, smooth

__all__ = ["CellEstimates", "Comparison", "compare", "estimate"]

Array = NDArray[np.float64]

RELIABLE_SHARE = 0.05
"""An estimate is called unreliable if a larger share of the cells has k above the threshold.

A rule of thumb. Below the threshold, estimates of cells err by their Monte Carlo error. Above it
they are too low by an unknown amount, but a few cells in a hundred hardly change the sum.
"""
CLEAR = 2.0
"""A difference of more than this many standard errors is called clear."""


@dataclass(frozen=True)
class CellEstimates:
    """Estimates of log p(x) of some cells under one model, in nats.

    Parameters
    ----------
    iw
        Logarithm of the mean importance weight, ``[cells]``.
    psis
        The same after Pareto smoothing, ``[cells]``.
    k
        Pareto k of the weights, ``[cells]``.
    variance
        Monte Carlo variance of `iw` by the delta method, ``[cells]``. Too small where k is high.
    n_draws
        Draws per cell.
    """

    iw: Array
    psis: Array
    k: Array
    variance: Array
    n_draws: int


@dataclass(frozen=True, repr=False)
class Comparison:
    """Result of :func:`pyro_contrastive.compare_models`.

    Parameters
    ----------
    table
        One row per model, the best first.
    cells
        One row per cell and model: ``cell`` (its name), ``model``, ``iw``, ``psis``, ``k``.
    """

    table: pd.DataFrame
    cells: pd.DataFrame

    def __repr__(self) -> str:
        return f"{self.table.to_string()}\n(cells: {len(self.cells)} rows)"

    def _repr_html_(self) -> str:
        html: str = self.table.to_html()
        return html


def estimate(log_weights: Array) -> CellEstimates:
    """Estimate log p(x) of each cell from the log importance weights of its draws.

    Parameters
    ----------
    log_weights
        ``[cells, draws]``, as
        :func:`~pyro_contrastive.analysis.likelihood.log_weights_of_cells` returns them.
    """
    smoothed = smooth(log_weights)
    n_draws = log_weights.shape[1]
    relative = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    mean = relative.mean(axis=1)
    iw = np.log(mean) + log_weights.max(axis=1)
    variance = relative.var(axis=1, ddof=1) / (n_draws * mean**2)
    return CellEstimates(iw, smoothed.log_mean, smoothed.k, variance, n_draws)


def compare(
    estimates: Mapping[str, CellEstimates],
    notes: Mapping[str, str],
    n_steps: int | None = None,
) -> pd.DataFrame:
    """Tabulate the estimates of several models on the same cells, the best first.

    Parameters
    ----------
    estimates
        By model; each of the same cells in the same order.
    notes
        By model, what to add to its reading; models may be left out.
    n_steps
        Steps by which posteriors were refined, on which the advice depends. ``None``: they were not
        refined.

    Returns
    -------
    See :func:`pyro_contrastive.compare_models`.
    """
    best = max(estimates, key=lambda name: estimates[name].psis.sum())
    rows = [_row(estimates[name], estimates[best]) for name in estimates]
    table = pd.DataFrame(rows, index=pd.Index(list(estimates), name="model"))
    table = table.sort_values("elpd_psis", ascending=False)
    readings = [
        " ".join(filter(None, (_reading(row, str(name) == best, n_steps), notes.get(str(name)))))
        for name, row in table.to_dict("index").items()
    ]
    return table.assign(reading=readings)


def _row(model: CellEstimates, best: CellEstimates) -> dict[str, object]:
    difference = model.psis - best.psis  # paired: the same cells
    threshold = k_threshold(model.n_draws)
    return {
        "elpd_psis": model.psis.sum(),
        "se": _standard_error(model.psis),
        "elpd_diff": difference.sum(),
        "diff_se": _standard_error(difference),
        "elpd_iw": model.iw.sum(),
        "monte_carlo_se": math.sqrt(model.variance.sum()),
        "per_cell": model.psis.mean(),
        "n_cells": len(model.psis),
        "median_k": float(np.median(model.k)),
        "share_high_k": float((model.k > threshold).mean()),
        "k_threshold": threshold,
        "reliable": bool((model.k > threshold).mean() <= RELIABLE_SHARE),
    }


def _standard_error(values: Array) -> float:
    """Estimate the standard error of a sum over cells from how much they vary."""
    return float(math.sqrt(len(values)) * values.std(ddof=1)) if len(values) > 1 else math.nan


def _reading(row: Mapping[str, object], is_best: bool, n_steps: int | None) -> str:
    """Explain a row: its place, and whether the estimate can be trusted."""
    difference, error = float(str(row["elpd_diff"])), float(str(row["diff_se"]))
    if is_best:
        place = "Highest."
    elif abs(difference) > CLEAR * error:
        distance = abs(difference) / error if error else math.inf
        place = f"Clearly worse than the best: {distance:.1f} standard errors."
    else:
        place = "Not clearly worse than the best: the difference is less than 2 standard errors."
    if row["reliable"]:
        return f"{place} Importance sampling is reliable."
    remedy = "Try refine=True"
    if n_steps is not None:
        remedy = (
            f"Posteriors were refined in {n_steps} steps; try refine={3 * n_steps}, and a larger "
            "n_samples"
        )
    return (
        f"{place} Unreliable: Pareto k is above {row['k_threshold']:.2f} in "
        f"{row['share_high_k']:.0%} of the cells, for which log p(x) is underestimated. {remedy}; "
        "trust only differences much larger than the gaps between elpd_psis and elpd_iw."
    )
