"""Matplotlib figures of the quality of a posterior, and of model comparisons."""

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

# Okabe and Ito's colours, as in the figures of latents.
_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_SITES = {"z": (_BLUE, "o"), "s": (_RED, "^"), "library": (_GREEN, "s")}
_BAND = "#E6E6E6"
_SURE = 0.99
_LARGEST_K = 2.0  # points beyond it are drawn at the edge


def plot_pareto_k(
    k: ArrayLike,
    groups: Sequence[object] | NDArray[Any] | pd.Series | None = None,
    *,
    n_samples: int = 500,
    ax: Axes | None = None,
    seed: int = 0,
) -> Axes:
    """Draw the Pareto k of every cell by group, with the threshold above which it is too high.

    Parameters
    ----------
    k
        ``[cells]``: the column ``k`` of :meth:`pyro_contrastive.ContrastiveVI.pareto_k`.
    groups
        Group of every cell, for example its condition or type. Default: one group.
    n_samples
        Number of draws per cell from which k was computed; it sets the threshold.
    ax
        Axes to draw on. Default: those of a new figure.
    seed
        Seed of the jitter that separates points.

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
        jitter = height + rng.uniform(-0.28, 0.28, len(own))
        _draw_k_of_group(axes, own, jitter, height, threshold)
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


def _draw_k_of_group(
    axes: Axes,
    k: NDArray[np.float64],
    jitter: NDArray[np.float64],
    height: int,
    threshold: float,
) -> None:
    """Draw the cells of one group on a line, their median, and the share that is too high."""
    high, beyond = k > threshold, k > _LARGEST_K
    inside = high & ~beyond
    axes.plot(k[~high], jitter[~high], "o", ms=4, color=_BLUE, alpha=0.6, mew=0)
    axes.plot(k[inside], jitter[inside], "^", ms=5, color=_RED, alpha=0.6, mew=0)
    edge = np.full(int(beyond.sum()), _LARGEST_K)
    axes.plot(edge, jitter[beyond], ">", ms=6, color=_RED, alpha=0.6, mew=0)
    median = min(float(np.median(k)), _LARGEST_K)
    axes.plot([median] * 2, [height - 0.38, height + 0.38], color=INK, lw=2.5)
    axes.annotate(
        f"{high.mean():.0%} high",
        (1.0, height),
        (6, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
    )


def plot_ranks(
    calibration: Calibration, quantities: Sequence[str] | None = None, *, n_columns: int = 4
) -> NDArray[Any]:
    """Draw a histogram of ranks per quantity, with a band that holds the bins of a uniform.

    If the posterior is too narrow, ranks pile up at both ends; if it is too wide, in the middle;
    if it is shifted, the histogram slopes.

    Parameters
    ----------
    calibration
        Result of :meth:`pyro_contrastive.ContrastiveVI.simulation_based_calibration`.
    quantities
        Which of its quantities. Default: all that were tested.
    n_columns
        Panels in a row.

    Returns
    -------
    Array of Axes, one per quantity. The band contains each bin of a uniform with probability 0.99.

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
        msg = f"No or too few ranks of {not_tested} to draw; available: {tested}."
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
        uniform = bool(table.loc[name, "uniform"])
        _draw_ranks(panel, calibration, name, color=_BLUE if uniform else _RED)
        title = name if uniform else f"{name}\nnot uniform"
        panel.set_title(title, fontsize="medium", color=INK if uniform else _RED)
    for panel in axes[len(names) :]:
        panel.set_visible(False)
    for row in grid:
        row[0].set_ylabel("simulated cells")
    for panel in axes[max(len(names) - n_columns, 0) : len(names)]:
        panel.set_xlabel("rank of the truth")
    return np.asarray(axes[: len(names)])


def _draw_ranks(axes: Axes, calibration: Calibration, name: str, *, color: str) -> None:
    """Draw the histogram of ranks of one quantity over the band of a uniform one."""
    ranks = calibration.ranks[name].dropna().to_numpy()
    counts, expected = rank_histogram(ranks, calibration.n_draws)
    total = counts.sum()
    low, high = stats.binom.interval(_SURE, int(total), expected / total)
    edges = np.concatenate([[0.0], np.cumsum(expected)]) / total * calibration.n_draws
    axes.fill_between(
        edges, np.append(low, low[-1]), np.append(high, high[-1]), step="post", color=_BAND
    )
    axes.stairs(expected, edges, color=INK, lw=0.8, ls="--", baseline=None)
    axes.stairs(counts, edges, color=color, lw=1.8, baseline=None)
    axes.set(ylim=(0, None), xlim=(0, calibration.n_draws))
    tidy(axes)


def plot_posterior_accuracy(accuracy: PosteriorAccuracy) -> NDArray[Any]:
    """Draw the encoder's means and standard deviations against those of NUTS.

    Parameters
    ----------
    accuracy
        Result of :meth:`pyro_contrastive.ContrastiveVI.posterior_accuracy`. Without NUTS, the
        refined posterior is the reference.

    Returns
    -------
    Two Axes: means, and standard deviations on logarithmic scales. A point is one dimension of one
    cell; points on the diagonal agree.
    """
    table = accuracy.latents
    reference, name = ("nuts", "NUTS") if "nuts_mean" in table else ("refined", "refined posterior")
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
    """Draw each model's difference from the best one, with two standard errors.

    Parameters
    ----------
    table
        ``compare_models(...).table``.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    The axes. Models without a reliable estimate are drawn hollow.
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
    axes.set_xlabel("log p(x) minus that of the best model (nats per cell; bar: 2 standard errors)")
    return tidy(axes)
