"""Matplotlib figures of what the latents hold: dimensions in use, and labels that leak."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyro_contrastive.plotting.style import FAINT, INK, LATENT_COLORS, new_axes, tidy

__all__ = ["plot_latent_usage", "plot_leakage"]


def plot_latent_usage(usage: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how much each dimension says of a cell; dimensions that are not used are hollow.

    Parameters
    ----------
    usage
        What :meth:`pyro_contrastive.ContrastiveVI.latent_signal` returned.
    ax
        Axes to draw on. Default: those of a new figure.
    """
    axes = ax if ax is not None else new_axes(0.9 + 0.36 * (len(usage) + 1), 3.4)
    start, ticks, names = 0, [], []
    for latent, own in usage.groupby("latent", sort=False):
        color = LATENT_COLORS[str(latent)]
        ordered = own.sort_values("signal", ascending=False)
        at = start + np.arange(len(ordered))
        faces = [color if used else "white" for used in ordered["used"]]
        axes.bar(at, ordered["signal"], color=faces, edgecolor=color, lw=1.4)
        n_used = int(own["used"].sum())
        axes.annotate(
            f"{latent}: {n_used} of {len(own)} used",
            (float(at.mean()), 1.0),
            (0, 4),
            textcoords="offset points",
            ha="center",
            color=color,
        )
        ticks += list(at)
        names += [str(k + 1) for k in ordered["dimension"]]
        start += len(own) + 1
    axes.set_xticks(ticks, names)
    axes.set(ylim=(0, 1), xlim=(-0.8, start - 1.2))
    axes.set_xlabel("dimension, the one that says most first")
    axes.set_ylabel("share of variance between cells")
    return tidy(axes)


def plot_leakage(leakage: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how well labels are told from each latent, between chance and never being wrong.

    Parameters
    ----------
    leakage
        What :meth:`pyro_contrastive.ContrastiveVI.leakage` returned.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    The axes; a tick marks chance, a grey line what shuffled labels reached.
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
