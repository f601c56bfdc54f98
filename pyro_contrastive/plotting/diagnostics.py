"""Matplotlib figures of how far a posterior can be trusted, and of models compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from pyro_contrastive.analysis.calibration import Calibration, rank_histogram
from pyro_contrastive.analysis.pareto import k_threshold
from pyro_contrastive.analysis.posterior_accuracy import PosteriorAccuracy
from pyro_contrastive.data.indices import in_order, names_of
from pyro_contrastive.plotting.style import INK, new_axes, tidy

__all__ = [
    "plot_comparison",
    "plot_pareto_k",
    "plot_posterior_accuracy",
    "plot_ranks",
]

# Okabe and Ito's, as in the figures of latents.
_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_SITES = {"z": (_BLUE, "o"), "s": (_RED, "^"), "library": (_GREEN, "s")}
_BAND = "#E6E6E6"
_SURE = 0.99
_LARGEST_K = 2.0  # beyond it, how far does not matter


def plot_pareto_k(
    k: ArrayLike,
    groups: Sequence[object] | NDArray[Any] | pd.Series | None = None,
    *,
    n_samples: int = 500,
    ax: Axes | None = None,
    seed: int = 0,
) -> Axes:
    """Draw the Pareto k of every cell, by group, with the values from which it is too high.

    Parameters
    ----------
    k
        ``[cells]``: the column ``k`` of :meth:`pyro_contrastive.ContrastiveVI.pareto_k`.
    groups
        Group of every cell, such as its condition or type. Default: one group.
    n_samples
        Draws per cell that k was computed from, which decides how high is too high.
    ax
        Axes to draw on. Default: those of a new figure.
    seed
        Of the jitter that keeps points apart.

    Raises
    ------
    ValueError
        If `groups` is not one per cell.
    """
    values = np.asarray(k, dtype=float)
    groups = in_order(groups, names_of(k), "groups")
    labels = np.full(len(values), "cells") if groups is None else np.asarray(groups).astype(str)
    if len(labels) != len(values):
        raise ValueError(f"groups has {len(labels)} values for {len(values)} cells")
    names = sorted(set(labels))
    axes = ax if ax is not None else new_axes(6.4, 1.6 + 0.5 * len(names))
    rng = np.random.default_rng(seed)
    threshold = k_threshold(n_samples)
    for height, name in enumerate(names):
        own = values[labels == name]
        high = own > threshold
        jitter = height + rng.uniform(-0.28, 0.28, len(own))
        axes.plot(own[~high], jitter[~high], "o", ms=4, color=_BLUE, alpha=0.6, mew=0)
        inside = high & (own <= _LARGEST_K)
        axes.plot(own[inside], jitter[inside], "^", ms=5, color=_RED, alpha=0.6, mew=0)
        edge = np.full(int((own > _LARGEST_K).sum()), _LARGEST_K)
        axes.plot(edge, jitter[own > _LARGEST_K], ">", ms=6, color=_RED, alpha=0.6, mew=0)
        axes.plot(
            [min(np.median(own), _LARGEST_K)] * 2,
            [height - 0.38, height + 0.38],
            color=INK,
            lw=2.5,
        )
        axes.annotate(
            f"{high.mean():.0%} high",
            (1.0, height),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
        )
    for at, text in ((threshold, f"{threshold:.2f}: too high"), (1.0, "1: no mean")):
        axes.axvline(at, color=INK, lw=1, ls="--", zorder=0)
        axes.annotate(
            text,
            (at, 1.0),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=30,
            fontsize="small",
        )
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.5, -0.5))
    beyond = f"; > : above {_LARGEST_K:g}" if (values > _LARGEST_K).any() else ""
    axes.set_xlabel(f"Pareto k of the importance weights (no unit); bar: median{beyond}")
    return tidy(axes)


def plot_ranks(
    calibration: Calibration, quantities: Sequence[str] | None = None, *, n_columns: int = 4
) -> NDArray[Any]:
    """Draw a histogram of ranks per quantity, with the band in which bins of a uniform lie.

    A posterior that is too narrow piles ranks up at both ends, one that is too wide in the middle;
    a shifted one slopes.

    Parameters
    ----------
    calibration
        What :meth:`pyro_contrastive.ContrastiveVI.simulation_based_calibration` returned.
    quantities
        Which of its quantities. Default: all that were tested.
    n_columns
        Panels in a row.

    Returns
    -------
    Array of Axes, one per quantity. The band holds a bin of a uniform with probability 0.99.

    Raises
    ------
    ValueError
        If a quantity is unknown, or too few simulated cells have it.
    """
    table = calibration.table
    tested = list(table.index[table["uniform"].notna()])
    names = tested if quantities is None else list(quantities)
    not_tested = [name for name in names or table.index if name not in tested]
    if not_tested or not names:
        msg = f"There are no ranks to draw, or too few, of {not_tested}; there are of {tested}."
        raise ValueError(msg)
    n_columns = min(n_columns, len(names))
    n_rows = -(-len(names) // n_columns)
    _, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=(2.3 * n_columns, 1.7 * n_rows + 0.4),
        layout="constrained",
        squeeze=False,
    )
    axes = grid.ravel()
    for panel, name in zip(axes, names, strict=False):
        counts, expected = rank_histogram(
            calibration.ranks[name].dropna().to_numpy(), calibration.n_draws
        )
        total = counts.sum()
        low, high = stats.binom.interval(_SURE, int(total), expected / total)
        edges = np.concatenate([[0.0], np.cumsum(expected)]) / total * calibration.n_draws
        uniform = bool(table.loc[name, "uniform"])
        panel.fill_between(
            edges, np.append(low, low[-1]), np.append(high, high[-1]), step="post", color=_BAND
        )
        panel.stairs(expected, edges, color=INK, lw=0.8, ls="--", baseline=None)
        panel.stairs(counts, edges, color=_BLUE if uniform else _RED, lw=1.8, baseline=None)
        title = name if uniform else f"{name}\nnot uniform"
        panel.set_title(title, fontsize="medium", color=INK if uniform else _RED)
        panel.set(ylim=(0, None), xlim=(0, calibration.n_draws))
        tidy(panel)
    for panel in axes[len(names) :]:
        panel.set_visible(False)
    for row in grid:
        row[0].set_ylabel("simulated cells")
    for panel in axes[max(len(names) - n_columns, 0) : len(names)]:
        panel.set_xlabel("rank of the truth")
    return np.asarray(axes[: len(names)])


def plot_posterior_accuracy(accuracy: PosteriorAccuracy) -> NDArray[Any]:
    """Draw the encoder's means and standard deviations against those of NUTS.

    Parameters
    ----------
    accuracy
        What :meth:`pyro_contrastive.ContrastiveVI.posterior_accuracy` returned; without NUTS the
        posterior fitted to each cell takes its place.

    Returns
    -------
    Two Axes: means, and standard deviations on logarithmic scales. A point is one dimension of one
    cell; points on the diagonal agree.
    """
    table = accuracy.latents
    reference, name = ("nuts", "NUTS") if "nuts_mean" in table else ("local", "fitted posterior")
    _, axes = plt.subplots(1, 2, figsize=(8.4, 4.0), layout="constrained")
    for panel, moment in zip(axes, ("mean", "sd"), strict=True):
        x, y = table[f"{reference}_{moment}"], table[f"encoder_{moment}"]
        ends = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
        panel.plot(ends, ends, color=INK, lw=0.9, zorder=1)
        for site, (color, marker) in _SITES.items():
            own = table["site"] == site
            if own.any():
                label = "log library size" if site == "library" else site
                panel.plot(
                    x[own], y[own], marker, ls="", ms=5, color=color, alpha=0.65, mew=0, label=label
                )
        panel.set_aspect("equal", adjustable="datalim")
        tidy(panel)
    axes[1].set(xscale="log", yscale="log")
    for axis in (axes[1].xaxis, axes[1].yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    for panel, title in zip(axes, ("posterior means", "standard deviations"), strict=True):
        panel.set(xlabel=f"{name} (latent units)", ylabel="encoder (latent units)", title=title)
    axes[0].legend(frameon=False)
    return np.asarray(axes)


def plot_comparison(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how far each model is from the best, with twice the standard error of the difference.

    Parameters
    ----------
    table
        ``compare_models(...).table``.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    The axes. Models whose estimate is not reliable are hollow.
    """
    axes = ax if ax is not None else new_axes(6.6, 1.1 + 0.5 * len(table))
    per_cell = 1 / table["n_cells"]
    for height, (_, row) in enumerate(table.iterrows()):
        scale = per_cell.iloc[height]
        color = _BLUE if row["reliable"] else _RED
        axes.errorbar(
            row["elpd_diff"] * scale,
            height,
            xerr=2 * row["diff_se"] * scale,
            fmt="o" if row["reliable"] else "^",
            color=color,
            mfc=color if row["reliable"] else "white",
            ms=8,
            capsize=4,
        )
        if not row["reliable"]:
            axes.annotate(
                f"k high in {row['share_high_k']:.0%}",
                (row["elpd_diff"] * scale, height),
                (0, 9),
                textcoords="offset points",
                ha="center",
                fontsize="small",
                color=color,
            )
    axes.axvline(0, color=INK, lw=1, ls="--", zorder=0)
    axes.set_yticks(range(len(table)), [str(name) for name in table.index])
    axes.set(ylim=(len(table) - 0.5, -0.6))
    axes.margins(x=0.12)
    axes.set_xlabel("log p(x) less that of the best (nats per cell; bar: 2 standard errors)")
    return tidy(axes)
