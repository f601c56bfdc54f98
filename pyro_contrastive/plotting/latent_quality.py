"""Matplotlib figures of the content of the latents: dimensions in use, and leaking labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyro_contrastive.plotting.style import FAINT, INK, LATENT_COLORS, new_axes, tidy

__all__ = ["plot_latent_usage", "plot_leakage"]

_SIGNAL = "share of variance between cells"
_NATS = "KL from the prior (nats per cell)"


def plot_latent_usage(usage: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how informative each dimension is; dimensions that are not used are hollow.

    Parameters
    ----------
    usage
        Result of :meth:`pyro_contrastive.ContrastiveVI.latent_signal`, for both latents and by
        variances, or :meth:`pyro_contrastive.ContrastiveVI.get_latent_usage`, for one latent and in
        nats.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        A bar for each dimension, grouped by latent.

    Raises
    ------
    ValueError
        If `usage` is neither of the two tables.
    """
    table, unit = _bars(usage)
    axes = ax if ax is not None else new_axes(max(3.8, 0.9 + 0.36 * (len(table) + 1)), 3.4)
    axes.set_ylim(0, 1 if unit == _SIGNAL else 1.05 * max(float(table["height"].max()), 1e-9))
    start, ticks, names = 0, [], []
    for latent, own in table.groupby("latent", sort=False):
        color = LATENT_COLORS.get(str(latent), INK)
        ordered = own.sort_values("height", ascending=False)
        at = start + np.arange(len(ordered))
        faces = [color if used else "white" for used in ordered["used"]]
        axes.bar(at, ordered["height"], color=faces, edgecolor=color, lw=1.4)
        axes.annotate(
            f"{latent}: {int(own['used'].sum())} of {len(own)} used".removeprefix(": "),
            (float(at.mean()), axes.get_ylim()[1]),
            (0, 4),
            textcoords="offset points",
            ha="center",
            color=color,
        )
        ticks += list(at)
        names += [str(k + 1) for k in ordered["dimension"]]
        start += len(own) + 1
    axes.set_xticks(ticks, names)
    axes.set_xlim(-0.8, start - 1.2)
    axes.set_xlabel("dimension, most informative first")
    axes.set_ylabel(unit)
    return tidy(axes)


def plot_leakage(leakage: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how well each latent predicts the labels, from chance to perfect.

    Parameters
    ----------
    leakage
        Result of :meth:`pyro_contrastive.ContrastiveVI.leakage`.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    The axes; a tick marks chance, a grey bar the range reached with shuffled labels.
    """
    axes = ax if ax is not None else new_axes(6.8, 1.0 + 0.45 * len(leakage))
    for height, row in enumerate(leakage.itertuples()):
        color = LATENT_COLORS[str(row.latent)]
        axes.hlines(height, 0, 1, color=FAINT, zorder=1)
        axes.plot(row.chance, height, "|", color=INK, ms=14, mew=2)
        if np.isfinite(row.upper_chance):
            axes.hlines(height, row.chance, row.upper_chance, color="#999999", lw=5, zorder=2)
        axes.plot(row.balanced_accuracy, height, "o", color=color, ms=9, zorder=3, clip_on=False)
        axes.annotate(
            f"{row.balanced_accuracy:.0%}",
            (row.balanced_accuracy, height),
            (0, 8),
            textcoords="offset points",
            ha="center",
        )
    names = [f"{row.of} in {row.latent}" for row in leakage.itertuples()]
    axes.set_yticks(range(len(leakage)), names)
    axes.set(xlim=(0, 1), ylim=(len(leakage) - 0.5, -0.8))
    axes.set_xlabel("balanced accuracy of a cross-validated probe; the tick is chance")
    axes.tick_params(axis="y", length=0)
    return tidy(axes, left=False)


def _bars(usage: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return latent, dimension, height and use of each bar, and the unit of the heights."""
    if {"latent", "dimension", "signal", "used"} <= set(usage.columns) and len(usage):
        return usage.rename(columns={"signal": "height"}), _SIGNAL
    if {"nats", "active"} <= set(usage.columns) and len(usage):
        # This table is of one latent, which it does not name.
        table = usage.rename(columns={"nats": "height", "active": "used"})
        return table.assign(latent="", dimension=usage.index), _NATS
    raise ValueError(
        "pass the result of model.latent_signal() or model.get_latent_usage(), not a table of "
        f"{len(usage)} rows with the columns {list(usage.columns)}"
    )
