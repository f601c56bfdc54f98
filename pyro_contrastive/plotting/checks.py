"""Matplotlib figures of posterior predictive checks: each takes a table and returns its Axes.

The tables are those of a :class:`~pyro_contrastive.analysis.checks.PosteriorPredictiveCheck`, of
one model or of several that were compared. What belongs to the data is black.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from pyro_contrastive.analysis.checks.statistics import EFFECTS
from pyro_contrastive.plotting.check_parts import (
    ON_LOG_SCALE,
    PLURAL,
    UNITS,
    check_columns,
    draw_against,
    legend_above,
    models_of,
    name_of,
    only_value,
    rows_of_group,
    rows_of_model,
    rows_of_statistic,
)
from pyro_contrastive.plotting.style import FAINT, INK, new_axes, tidy

__all__ = [
    "plot_correlations",
    "plot_effects",
    "plot_groups",
    "plot_misfit",
    "plot_statistic",
]


def plot_misfit(
    overall: pd.DataFrame,
    *,
    expected: float = 0.1,
    group: tuple[str, str] = ("all", "all"),
    n_lines: int | None = 20,
    ax: Axes | None = None,
) -> Axes:
    """Draw, for each statistic, how many genes, cells or pairs the model does not reproduce.

    Parameters
    ----------
    overall
        ``check.overall``.
    expected
        The share that is outside by chance: 1 - ``check.interval``.
    group
        Key and value: which cells; default all.
    n_lines
        How many statistics to draw, those that fit worst in any model; the figure says how many
        are left out. None draws all, which with many treatments, each a line, is a tall figure.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        A line for each statistic, in the order of the table, a marker for each model; the further
        right, the worse.

    Raises
    ------
    ValueError
        If the table has no such group, or lacks a column, or `n_lines` is less than 1.
    """
    table = rows_of_group(overall, group, ("unit", "share_outside"))
    if group == ("all", "all"):
        table = pd.concat([table, overall[overall["statistic"].isin(EFFECTS)]])
    table = table[(table["unit"].astype(str) != "data") & table["share_outside"].notna()]
    if table.empty:
        raise ValueError("overall has no statistic of genes, cells or pairs")
    labels = _line_labels(table)
    worst = table["share_outside"].groupby(labels, sort=False).max()
    lines = _worst_lines(worst, n_lines)
    table = table[labels.isin(lines)]
    axes = ax if ax is not None else new_axes(7.0, 1.3 + 0.34 * len(lines))
    axes.hlines(range(len(lines)), 0, 1, color=FAINT, zorder=1)
    for name, color, marker in models_of(table):
        chosen = table["model"].astype(str) == name
        y = [lines.index(label) for label in labels[table.index][chosen]]
        x = table.loc[chosen, "share_outside"]
        axes.plot(x, y, marker, color=color, ms=8, label=name, ls="", zorder=3, clip_on=False)
    axes.axvline(expected, color=INK, ls="--", lw=1, label=f"by chance ({expected:.0%})")
    axes.set_yticks(range(len(lines)), lines)
    axes.set(xlim=(0, 1), ylim=(len(lines) - 0.5, -0.5))
    axes.set_xlabel(
        f"share outside of the {1 - expected:.0%} interval of the replicates"
        + _left_out(worst.drop(lines))
    )
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(axis="y", length=0, pad=8)  # a marker at 0 stays clear of the labels
    legend_above(axes)
    return tidy(axes, left=False)


def plot_statistic(
    table: pd.DataFrame,
    statistic: str,
    *,
    model: str | None = None,
    group: tuple[str, str] = ("all", "all"),
    ax: Axes | None = None,
) -> Axes:
    """Draw a statistic of each gene, or of each cell: data against the mean of the replicates.

    Parameters
    ----------
    table
        ``check.genes`` or ``check.cells``.
    statistic
        One of the statistics in it.
    model
        Which model, if the table has several.
    group
        Key and value: which cells; default all.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        A point for each gene or cell, with a colour and shape of its own where the data lie outside
        of the interval; the line is where data and replicates agree.

    Raises
    ------
    ValueError
        If there is no such statistic, model or group; the error lists those there are.
    """
    chosen = rows_of_statistic(table, statistic, model, group)
    unit = "cell" if "cell" in chosen and chosen["cell"].astype(str).ne("").any() else "gene"
    axes = ax if ax is not None else new_axes(4.6, 4.4)
    label = f"{name_of(statistic)} of a {unit} ({UNITS.get(statistic, 'no unit')})"
    return draw_against(axes, chosen, label, logs=statistic in ON_LOG_SCALE, unit=unit)


def plot_effects(
    effects: pd.DataFrame,
    *,
    model: str | None = None,
    treatment: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the effect of a treatment on each gene: data against the mean of the replicates.

    Parameters
    ----------
    effects
        ``check.effects``.
    model, treatment
        Which model and treatment, if the table has several.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        As in :func:`plot_statistic`.

    Raises
    ------
    ValueError
        If there is no such model or treatment, or one must be chosen.
    """
    check_columns(effects, ("group", "gene"))
    treatment = only_value(effects, "group", treatment)
    found = effects[effects["group"].astype(str) == treatment]
    chosen = rows_of_model(found, only_value(found, "model", model))
    axes = ax if ax is not None else new_axes(4.6, 4.4)
    label = f"{name_of(str(chosen['statistic'].iloc[0]))}, {treatment}"
    return draw_against(axes, chosen, label, logs=False, unit="gene")


def plot_correlations(
    correlations: pd.DataFrame,
    *,
    model: str | None = None,
    group: tuple[str, str] = ("all", "all"),
    ax: Axes | None = None,
) -> Axes:
    """Draw the correlation of each pair of genes: data against the mean of the replicates.

    Parameters
    ----------
    correlations
        ``check.correlations``.
    model, group, ax
        As in :func:`plot_statistic`.

    Returns
    -------
    matplotlib.axes.Axes
        As in :func:`plot_statistic`.

    Raises
    ------
    ValueError
        If there is no such model or group.
    """
    chosen = rows_of_statistic(correlations, "correlation", model, group)
    axes = ax if ax is not None else new_axes(4.6, 4.4)
    return draw_against(axes, chosen, "correlation of two genes", logs=False, unit="pair")


def plot_groups(
    overall: pd.DataFrame,
    statistic: str,
    *,
    group_by: str,
    unit: str = "gene",
    ax: Axes | None = None,
) -> Axes:
    """Draw a statistic, averaged over genes or cells, in each group of cells.

    Parameters
    ----------
    overall
        ``check.overall``.
    statistic
        One of the statistics in it.
    group_by
        By which column the cells are grouped.
    unit
        Averaged over what: ``"gene"``, ``"cell"``, ``"pair"`` or ``"bin"``.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        A line for each group: the data black, the interval of each model's replicates coloured.

    Raises
    ------
    ValueError
        If there is no such statistic or grouping.
    """
    check_columns(overall, ("unit",))
    table = overall[
        (overall["group_by"].astype(str) == group_by) & (overall["unit"].astype(str) == unit)
    ]
    table = table[table["statistic"].astype(str) == statistic]
    if table.empty:
        raise ValueError(f"overall has no {statistic!r} of {unit}s by {group_by!r}")
    groups = list(dict.fromkeys(table["group"].astype(str)))
    models = models_of(table)
    axes = ax if ax is not None else new_axes(6.4, 1.4 + (0.16 + 0.14 * len(models)) * len(groups))
    step = 0.6 / max(len(models), 1)
    for number, (name, color, marker) in enumerate(models):
        chosen = rows_of_model(table, name)
        y = np.array([groups.index(g) for g in chosen["group"].astype(str)])
        y = y + (number - (len(models) - 1) / 2) * step
        axes.hlines(y, chosen["lower"], chosen["upper"], color=color, lw=2.5)
        axes.plot(chosen["replicate_mean"], y, marker, color=color, ms=5, ls="", label=name)
    one = rows_of_model(table, models[0][0])
    places = [groups.index(group) for group in one["group"].astype(str)]
    axes.vlines(
        one["observed"], [p - 0.4 for p in places], [p + 0.4 for p in places], color=INK, lw=2,
        label="data", zorder=1,
    )  # fmt: skip
    axes.set_yticks(range(len(groups)), groups)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    unit_of = UNITS.get(statistic, "no unit")
    axes.set_xlabel(f"{name_of(statistic)}, mean over {PLURAL.get(unit, unit)} ({unit_of})")
    legend_above(axes)
    return tidy(axes)


def _line_labels(table: pd.DataFrame) -> pd.Series[str]:
    """Name the statistic, of what, and the treatment if it is an effect."""
    units = table["unit"].astype(str).map(lambda unit: PLURAL.get(unit, unit))
    names = table["statistic"].astype(str).map(name_of) + " (" + units + ")"
    effects = table["statistic"].isin(EFFECTS)
    return names.where(~effects, names + ", " + table["group"].astype(str))


def _worst_lines(worst: pd.Series[float], n_lines: int | None) -> list[str]:
    """Name the lines that fit worst, in the order they were given in."""
    if n_lines is not None and n_lines < 1:
        raise ValueError(f"n_lines must be at least 1, or None for all, not {n_lines}")
    first = worst.sort_values(ascending=False, kind="stable").index[:n_lines]
    return [str(line) for line in worst.index if line in first]


def _left_out(worst: pd.Series[float]) -> str:
    """Say how many lines are not drawn, and that they are not hidden misfits."""
    if worst.empty:
        return ""
    lines = "line that fits" if len(worst) == 1 else "lines that fit"
    return f"\n{len(worst)} {lines} better not shown: at most {worst.max():.0%} outside"
