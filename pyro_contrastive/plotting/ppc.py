"""Matplotlib figures of posterior predictive checks: each takes a table and returns its Axes.

The tables are those of a :class:`~pyro_contrastive.analysis.ppc.PosteriorPredictiveCheck`, of
one model or of several compared models. The data are drawn black.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from pyro_contrastive.analysis.ppc import PosteriorPredictiveCheck
from pyro_contrastive.plotting.ppc_parts import (
    ON_LOG_SCALE,
    UNITS,
    check_columns,
    draw_against,
    name_of,
    only_value,
    rows_of_model,
    rows_of_statistic,
    table_of,
)
from pyro_contrastive.plotting.style import new_axes

__all__ = ["plot_correlations", "plot_effects", "plot_statistic"]


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
        Name of the model, if the table has several.
    group
        Key and value: which cells; default all.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        A point per gene or cell, with a different colour and shape where the data lie outside the
        interval; on the line, data and replicates agree.

    Raises
    ------
    ValueError
        If there is no such statistic, model or group; the error lists those available.
    """
    chosen = rows_of_statistic(table_of(table, "genes", "cells"), statistic, model, group)
    unit = "cell" if "cell" in chosen and chosen["cell"].astype(str).ne("").any() else "gene"
    axes = ax if ax is not None else new_axes(4.6, 4.4)
    label = f"{name_of(statistic)} of a {unit} ({UNITS.get(statistic, 'no unit')})"
    return draw_against(axes, chosen, label, logs=statistic in ON_LOG_SCALE, unit=unit)


def plot_effects(
    effects: pd.DataFrame | PosteriorPredictiveCheck,
    *,
    model: str | None = None,
    treatment: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the effect of a treatment on each gene: data against the mean of the replicates.

    Parameters
    ----------
    effects
        ``check.effects``, or the check itself.
    model, treatment
        Names of model and treatment, if the table has several.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        As in :func:`plot_statistic`.

    Raises
    ------
    ValueError
        If there is no such model or treatment, or there are several and none is chosen.
    """
    effects = table_of(effects, "effects")
    check_columns(effects, ("group", "gene"))
    treatment = only_value(effects, "group", treatment, argument="treatment")
    found = effects[effects["group"].astype(str) == treatment]
    chosen = rows_of_model(found, only_value(found, "model", model))
    axes = ax if ax is not None else new_axes(4.6, 4.4)
    label = f"{name_of(str(chosen['statistic'].iloc[0]))}, {treatment}"
    return draw_against(axes, chosen, label, logs=False, unit="gene")


def plot_correlations(
    correlations: pd.DataFrame | PosteriorPredictiveCheck,
    *,
    model: str | None = None,
    group: tuple[str, str] = ("all", "all"),
    ax: Axes | None = None,
) -> Axes:
    """Draw the correlation of each pair of genes: data against the mean of the replicates.

    Parameters
    ----------
    correlations
        ``check.correlations``, or the check itself.
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
    chosen = rows_of_statistic(table_of(correlations, "correlations"), "correlation", model, group)
    axes = ax if ax is not None else new_axes(4.6, 4.4)
    return draw_against(axes, chosen, "correlation of two genes", logs=False, unit="pair")
