"""Matplotlib figures of training and latents: each takes arrays or tables and returns its Axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive.data.indices import in_order, names_of
from pyro_contrastive.plotting.categories import (
    category_legend,
    draw_cells,
    drawn_categories,
    legend_width,
)
from pyro_contrastive.plotting.style import new_axes, tidy

__all__ = ["plot_embedding", "plot_history"]

_TRAIN_COLOR, _VALIDATION_COLOR = "#0072B2", "#D55E00"


def plot_history(history: Mapping[str, pd.DataFrame], *, ax: Axes | None = None) -> Axes:
    """Draw the training and held-out negative ELBO by epoch, per pair of cells.

    A pair is one background and one target cell: the objective adds the means of the two
    populations, so that neither dominates.

    Parameters
    ----------
    history
        Tables by name, each indexed by epoch with a column of the same name, as in
        ``model.history``. Draws ``"elbo_train"`` and ``"elbo_validation"``, or, without an ELBO,
        ``"train_loss_epoch"`` and ``"validation_loss"``; shades the epochs in which ``"kl_weight"``
        is below its final value. Tables that are missing are skipped.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on. The first epochs may run off the top, so that the rest can be seen.

    Raises
    ------
    ValueError
        If `history` contains none of these four curves.
    """
    names, label = ("elbo_train", "elbo_validation"), "negative ELBO (nats per pair of cells)"
    if not any(name in history for name in names):
        names, label = ("train_loss_epoch", "validation_loss"), "loss (nats per pair of cells)"
    curves = [_curve(history, name) for name in names]
    if all(curve.empty for curve in curves):
        raise ValueError(f"history has no ELBO or loss to draw; it has: {', '.join(history)}")
    axes = ax if ax is not None else new_axes(6.4, 3.8)
    _shade_warmup(axes, _curve(history, "kl_weight"))
    _draw_curve(axes, curves[0], "training cells", _TRAIN_COLOR)
    _draw_curve(axes, curves[1], "held-out cells", _VALIDATION_COLOR)
    if not curves[1].empty:
        best = curves[1].idxmin()
        text = f"best held-out: {curves[1][best]:.4g} at epoch {best}"
        axes.plot(best, curves[1][best], "o", color=_VALIDATION_COLOR, label=text)
    _limit_to_settled(axes, curves)
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.legend(frameon=False)
    return tidy(axes)


def plot_embedding(
    coords: ArrayLike,
    labels: Sequence[object] | NDArray[Any] | pd.Series,
    *,
    background: object | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    legend_title: str | None = None,
    axis_name: str = "map",
    legend: bool = True,
    seed: int = 0,
) -> Axes:
    """Draw a two-dimensional map of the cells, coloured by category.

    Parameters
    ----------
    coords
        Coordinates of every cell [cells, 2].
    labels
        Category of every cell [cells]. A categorical keeps its order, anything else is sorted.
        Missing labels are drawn grey. Each category has its own colour; up to 11 colours remain
        distinct under colour blindness, and from the 12th on markers differ as well.
    background
        The category of background cells, for example controls. It is drawn grey, comes first in
        the legend, and lies beneath the others if there are several; with a single other category
        it does not, so that mixing is visible. Default: none.
    ax
        Axes to draw on. Default: those of a new figure, as wide as the legend needs.
    title
        Title of the axes. Default: none.
    legend_title
        Title of the legend, for example "cell type". Default: none.
    axis_name
        Name of the map, for example "t-SNE": the axes become "t-SNE 1" and "t-SNE 2".
    legend
        Whether to draw the legend, at the right of the axes. Default true.
    seed
        Seed of the drawing order, which is shuffled so that no category hides another.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    ValueError
        If `coords` is not [cells, 2], `labels` is not one per cell, or `background` is not a label.
    """
    points = np.asarray(coords)
    labels = in_order(labels, names_of(coords), "labels")
    if points.ndim != 2 or points.shape[1] != 2:  # noqa: PLR2004 -- two dimensions
        raise ValueError(f"coords must be [cells, 2], not {points.shape}")
    codes, categories = drawn_categories(labels, background)
    if len(codes) != len(points):
        raise ValueError(f"labels has {len(codes)} values for {len(points)} cells")
    shown = categories if (codes < 0).any() else categories[:-1]
    if ax is None:
        width = legend_width([category.name for category in shown]) if legend else 0.0
        ax = new_axes(max(6.2, 4.6 + width), 4.6)
    order = np.random.default_rng(seed).permutation(len(points))
    several = len(categories) > len(("background", "one other", "missing"))
    beneath = (codes[order] == 0) & (background is not None and several)
    size = float(np.clip(45_000 / max(len(points), 1), 4.0, 30.0))
    for zorder, drawn in enumerate((order[beneath], order[~beneath]), start=1):
        draw_cells(ax, points[drawn], [categories[code] for code in codes[drawn]], size, zorder)
    if legend:
        category_legend(ax, shown, legend_title)
    ax.set(xlabel=f"{axis_name} 1", ylabel=f"{axis_name} 2", xticks=[], yticks=[])
    if title is not None:
        ax.set_title(title)
    return tidy(ax)


def _curve(history: Mapping[str, pd.DataFrame], name: str) -> pd.Series[float]:
    """Return one column of the history, without epochs in which it was not recorded."""
    if name not in history:
        return pd.Series(dtype=float)
    return history[name].iloc[:, 0].astype(float).dropna()


def _draw_curve(axes: Axes, curve: pd.Series[float], label: str, color: str) -> None:
    if not curve.empty:
        axes.plot(curve.index, curve.to_numpy(), color=color, lw=1.6, label=label)


def _shade_warmup(axes: Axes, weight: pd.Series[float]) -> None:
    """Mark the epochs of the KL warm-up, whose ELBOs are not comparable with later ones."""
    warming = weight[weight < weight.max()]
    if not warming.empty:
        span = (float(weight.index[0]), float(warming.index[-1]))
        axes.axvspan(
            *span, fc="#F2F2F2", ec="#BBBBBB", lw=0.8, zorder=0, label="KL term still growing"
        )


def _limit_to_settled(axes: Axes, curves: Sequence[pd.Series[float]]) -> None:
    """Scale the y axis without the first twentieth of training, where curves fall steeply."""
    settled = pd.concat([curve.iloc[len(curve) // 20 :] for curve in curves if not curve.empty])
    low, high = float(settled.min()), float(settled.max())
    margin = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
