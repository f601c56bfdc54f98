"""Matplotlib figure of separation scores: takes their table and returns its Axes."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from pyro_contrastive.plotting.style import FAINT, INK, LATENT_COLORS, new_axes, tidy

__all__ = ["plot_scores", "two_decimals"]

_BESIDE = 12  # points between the end of a scale and its triangle, so that a dot cannot hide it


def plot_scores(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw separation scores as dots, with an open triangle at the better end of each scale.

    Parameters
    ----------
    table
        Scores as :func:`pyro_contrastive.analysis.separation.score_latents` returns them: columns
        ``latent``, ``of``, ``measure``, ``value`` and ``best``.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on, one line per score, in the order of the table. Scales end at 1; the
        dot of a score above 1, which mixing can reach, lies beyond the end.

    Raises
    ------
    ValueError
        If a column is missing or the table is empty.
    """
    missing = {"latent", "of", "measure", "value", "best"} - set(table.columns)
    if missing or table.empty:
        raise ValueError(f"table lacks {sorted(missing)}" if missing else "table has no rows")
    axes = ax if ax is not None else new_axes(7.0, 0.9 + 0.42 * len(table))
    left = min(0.0, float(table["value"].min()))
    right = max(1.0, float(table["value"].max()))
    for height, row in enumerate(table.itertuples()):
        value = float(row.value)
        axes.hlines(height, left, 1, color=FAINT, zorder=1)
        color = LATENT_COLORS.get(str(row.latent), INK)
        axes.plot(value, height, "o", color=color, ms=9, clip_on=False, zorder=3)
        _mark_better_end(axes, height, high=row.best == "high", ends=(left, max(value, 1.0)))
        text = two_decimals(value)
        axes.annotate(text, (value, height), (0, 8), textcoords="offset points", ha="center")
    names = [f"{row.of}: {row.measure} ({row.latent})" for row in table.itertuples()]
    axes.set_yticks(range(len(table)), names)
    margin = 0.05 * (right - left)  # for the triangles
    axes.set(xlim=(left - margin, right + margin), ylim=(len(table) - 0.5, -0.7))
    axes.spines["bottom"].set_bounds(left, right)
    axes.set_xlabel("score (no unit); the triangle marks the better end")
    axes.tick_params(axis="y", length=0, pad=10)
    return tidy(axes, left=False)


def two_decimals(value: float) -> str:
    """Write a score with two decimals, and never as -0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


def _mark_better_end(axes: Axes, height: int, *, high: bool, ends: tuple[float, float]) -> None:
    """Draw the triangle outside the scale, and outside a dot beyond its end."""
    end, triangle, side = (ends[1], ">", 1) if high else (ends[0], "<", -1)
    shift = ScaledTranslation(side * _BESIDE / 72, 0, axes.figure.dpi_scale_trans)  # 72 per inch
    axes.plot(
        end, height, triangle, mfc="white", mec=INK, clip_on=False, transform=axes.transData + shift
    )
