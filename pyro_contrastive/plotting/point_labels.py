"""Names beside points of a scatter plot, placed so that they do not overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

from pyro_contrastive.plotting.style import INK

__all__ = ["label_points"]

Array = NDArray[np.float64]
_SIZE = 8.0
_MARGIN = 1.5
_DISTANCES = (4.0, 10.0, 18.0, 28.0, 40.0, 55.0)
_WITHOUT_LINE = 10.0
_ANGLES = np.arange(16) * np.pi / 8
_COST_OF_A_POINT = 4.0  # a name moves this much farther away rather than cover one more point


def label_points(axes: Axes, points: Array, names: Sequence[str], others: Array) -> None:
    """Write a name beside each point; earlier ones get the better places.

    A name that would cover another one, or leave the axes, wherever it is put is left out. The
    figure is laid out first, so call this when all else is drawn.

    Parameters
    ----------
    axes
        Axes with their limits set.
    points
        Points to name, ``[names, 2]``.
    names
        Their names.
    others
        All points that names had better not cover, ``[points, 2]``.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    scale = 72 / figure.dpi  # from pixels to points, in which sizes of letters are
    places, crowd = (axes.transData.transform(some) * scale for some in (points, others))
    frame = np.array(axes.get_window_extent().extents) * scale  # left, bottom, right, top
    taken: list[Array] = []
    for name, data, place in zip(names, points, places, strict=True):
        width = TextPath((0, 0), name, size=_SIZE).get_extents().width
        half = np.array([width, _SIZE]) / 2 + _MARGIN
        middle = _best_place(place, half, frame, taken, crowd)
        if middle is None:
            continue
        taken.append(np.concatenate([middle - half, middle + half]))
        gap = np.linalg.norm(np.maximum(np.abs(middle - place) - half, 0))
        line = {"arrowstyle": "-", "lw": 0.6, "color": INK, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            name,
            (float(data[0]), float(data[1])),
            (float(middle[0] - place[0]), float(middle[1] - place[1])),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_SIZE,
            color=INK,
            arrowprops=line if gap > _WITHOUT_LINE else None,
            zorder=5,
        )


def _best_place(
    point: Array, half: Array, frame: Array, taken: Sequence[Array], crowd: Array
) -> Array | None:
    """Return the middle of the free rectangle that costs least; ``None`` if there is none."""
    best, least = None, np.inf
    for distance in _DISTANCES:
        for angle in _ANGLES:
            direction = np.array([np.cos(angle), np.sin(angle)])
            middle = point + direction * (half + distance)
            low, high = middle - half, middle + half
            if (low < frame[:2]).any() or (high > frame[2:]).any():
                continue
            if any((low < box[2:]).all() and (high > box[:2]).all() for box in taken):
                continue
            covers = int(((crowd > low) & (crowd < high)).all(axis=1).sum())
            cost = distance + _COST_OF_A_POINT * covers
            if cost < least:
                best, least = middle, cost
    return best
