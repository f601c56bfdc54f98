"""Matplotlib figures of predictive checks that are curves: trends, coverage, ranks. See `ppc`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from pyro_contrastive.analysis.ppc import PosteriorPredictiveCheck
from pyro_contrastive.plotting.ppc_parts import (
    known_values,
    models_of,
    rows_of_group,
    rows_of_model,
    short_log_axis,
    table_of,
)
from pyro_contrastive.plotting.style import INK, new_axes, tidy

__all__ = ["plot_coverage", "plot_pit", "plot_trend"]


def plot_trend(
    trends: pd.DataFrame | PosteriorPredictiveCheck,
    statistic: str = "variance_trend",
    *,
    group: tuple[str, str] = ("all", "all"),
    ax: Axes | None = None,
) -> Axes:
    """Draw how variance or zero fraction of genes depend on their mean, in data and replicates.

    Parameters
    ----------
    trends
        ``check.trends``, or the check itself.
    statistic
        ``"variance_trend"`` or ``"zero_fraction_trend"``.
    group
        Key and value: which cells; default all.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The data in black; for each model the mean and the interval of its replicates.

    Raises
    ------
    ValueError
        If there is no such statistic or group.
    """
    found = rows_of_group(table_of(trends, "trends"), group, ("bin_mean",))
    table = found[found["statistic"].astype(str) == statistic]
    if table.empty:
        raise ValueError(f"trends has no {statistic!r}; it has {known_values(found, 'statistic')}")
    axes = ax if ax is not None else new_axes(5.4, 4.0)
    for name, color, marker in models_of(table):
        chosen = rows_of_model(table, name)
        x = chosen["bin_mean"]
        axes.fill_between(x, chosen["lower"], chosen["upper"], color=color, alpha=0.25, lw=0)
        axes.plot(x, chosen["replicate_mean"], marker, ls="-", color=color, ms=4, label=name)
    one = rows_of_model(table, models_of(table)[0][0])
    axes.plot(one["bin_mean"], one["observed"], "D--", color=INK, ms=5, lw=1.2, label="data")
    positive = bool((table["bin_mean"] > 0).all())
    of_variance = statistic == "variance_trend"
    axes.set_xscale("log" if positive else "linear")
    axes.set_yscale("log" if of_variance and positive else "linear")
    if positive:
        short_log_axis(axes)
    axes.set_xlabel("mean of a gene (counts per cell)" if positive else "mean of a gene")
    axes.set_ylabel("variance of a gene" if of_variance else "zero fraction of a gene")
    axes.legend(frameon=False)
    return tidy(axes)


def plot_coverage(
    calibration: pd.DataFrame | PosteriorPredictiveCheck,
    *,
    group: tuple[str, str] = ("all", "all"),
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of entries within the central intervals of their replicates.

    Parameters
    ----------
    calibration
        ``check.calibration``, or the check itself.
    group
        Key and value: which cells; default all.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Coverage minus its nominal level: above 0 the model is too wide, below 0 too narrow.

    Raises
    ------
    ValueError
        If the table has no such group, or lacks a column.
    """
    table = rows_of_group(table_of(calibration, "calibration"), group, ("level",))
    axes = ax if ax is not None else new_axes(5.4, 3.8)
    axes.axhline(0, color=INK, lw=1.2, label="a correct model")
    for name, color, marker in models_of(table):
        chosen = rows_of_model(table, name).sort_values("level")
        off = chosen["observed"] - chosen["level"]
        half = (chosen["upper"] - chosen["lower"]) / 2
        axes.errorbar(
            chosen["level"], off, yerr=half, fmt=marker, ls="-", color=color, ms=6, capsize=3,
            label=name,
        )  # fmt: skip
    levels = sorted(set(table["level"]))
    axes.set_xticks(levels, [f"{100 * level:.6g}%" for level in levels])
    # As many decimals as the ticks need: deviations can be hundredths of a point.
    axes.yaxis.set_major_formatter(FuncFormatter(_percent_points))
    axes.set_xlabel("interval of the replicates")
    axes.set_ylabel("coverage minus its level (percentage points)")
    axes.set_title("above 0: model too wide; below: too narrow", fontsize="medium")
    axes.legend(frameon=False)
    return tidy(axes)


def plot_pit(
    pit: pd.DataFrame | PosteriorPredictiveCheck,
    *,
    group: tuple[str, str] = ("all", "all"),
    ax: Axes | None = None,
) -> Axes:
    """Draw the randomised ranks of the data among their replicates: flat for a correct model.

    Parameters
    ----------
    pit
        ``check.pit``, or the check itself.
    group
        Key and value: which cells; default all.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        High ends: the model is too narrow. A high middle: too wide. A slope: biased.

    Raises
    ------
    ValueError
        If the table has no such group, or lacks a column.
    """
    table = rows_of_group(table_of(pit, "pit"), group, ("bin_left",))
    axes = ax if ax is not None else new_axes(5.4, 3.6)
    n_bins = table["bin_left"].nunique()
    edges = np.linspace(0, 1, n_bins + 1)
    axes.axhline(1, color=INK, lw=1.2, label="a correct model")
    for name, color, _ in models_of(table):
        chosen = rows_of_model(table, name).sort_values("bin_left")
        axes.stairs(
            chosen["observed"] * n_bins, edges, baseline=None, color=color, lw=1.8, label=name
        )
    axes.set(xlim=(0, 1), ylim=(0, None))
    axes.set_xlabel("rank of a count among its replicates (0: lowest, 1: highest)")
    axes.set_ylabel("density (1: as expected)")
    axes.legend(frameon=False, loc="lower center")
    return tidy(axes)


def _percent_points(share: float, _: int | None = None) -> str:
    return f"{round(100 * share, 6) + 0.0:g}"  # + 0.0: not -0
