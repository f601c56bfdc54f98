"""Categories of cells in a figure: colours, markers and legend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from numpy.typing import NDArray

from pyro_contrastive.data.levels import position_of
from pyro_contrastive.plotting.palette import category_colors
from pyro_contrastive.plotting.style import FAINT, GREY, MANY, MARKERS

__all__ = ["Category", "category_legend", "draw_cells", "drawn_categories", "legend_width"]

_ROWS = 18
_FEW_ENTRIES = 11
_SIZES = {True: "medium", False: "small"}
_POINTS = {True: 10.0, False: 8.33}  # of these sizes, by matplotlib's defaults


class Category(NamedTuple):
    """Name of a category in the legend, and colour and marker of its cells."""

    name: str
    color: str
    marker: str


def drawn_categories(
    labels: Any, background: object | None
) -> tuple[NDArray[np.intp], list[Category]]:
    """Return the code of each cell, and categories by code; the last, -1, is for missing labels.

    The background category, if there is one, is code 0 and grey.
    """
    given = pd.Series(labels)
    if not isinstance(given.dtype, pd.CategoricalDtype):
        given = given.astype(object)  # so that any value can be replaced by text
        given = given.where(given.isna(), given.astype(str)).astype("category")
    used = given.cat.remove_unused_categories()
    names = [str(name) for name in used.cat.categories]
    codes = used.cat.codes.to_numpy(dtype=np.intp)
    missing = Category("not labelled", GREY if background is None else FAINT, "o")
    if background is None:
        return codes, [*_styled(names), missing]
    at = position_of(background, names)
    if at is None:
        raise ValueError(f"background {background!r} is not among the labels: {names[:20]}")
    others = [name for name in names if name != names[at]]
    # Categories before it move up by one, because it takes 0.
    new = np.array([0 if i == at else i + (i < at) for i in range(len(names))], dtype=np.intp)
    codes = np.where(codes < 0, codes, new[codes])
    return codes, [Category(names[at], GREY, "o"), *_styled(others), missing]


def draw_cells(
    axes: Axes, points: NDArray[Any], cells: Sequence[Category], size: float, zorder: float
) -> None:
    """Draw cells in the given order, each in the style of its category."""
    if not cells:
        return
    collection = axes.scatter(
        points[:, 0],
        points[:, 1],
        c=[cell.color for cell in cells],
        s=size,
        linewidths=0,
        alpha=0.8,
        rasterized=True,
        zorder=zorder,
    )
    markers = [cell.marker for cell in cells]
    if len(set(markers)) > 1 or markers[0] != "o":
        # One collection instead of one per marker: otherwise the last one would hide the others.
        collection.set_paths([_outline(marker) for marker in markers])


def category_legend(axes: Axes, categories: Sequence[Category], title: str | None) -> None:
    """Put a legend to the right of the axes, in columns if there are many categories."""
    few = len(categories) <= _FEW_ENTRIES
    handles = [
        Line2D([], [], ls="", marker=marker, color=color, label=name)
        for name, color, marker in categories
    ]
    legend = axes.legend(
        handles=handles,
        title=title,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=_SIZES[few],
        handlelength=1.0,
        columnspacing=1.0,
        ncols=_n_columns(len(categories)),
        alignment="left",
    )
    legend.set_in_layout(True)


def legend_width(names: Sequence[str]) -> float:
    """Estimate the width in inches of the legend, so that a figure can make room for it."""
    columns = _n_columns(len(names))
    rows = -(-len(names) // columns)
    widest = [max(map(len, names[i : i + rows])) for i in range(0, len(names), rows)]
    points = _POINTS[len(names) <= _FEW_ENTRIES]
    # A letter is about 0.6 times as wide as high; 3 stands for the marker and its margins.
    return points / 72 * sum(0.6 * length + 3 for length in widest)


def _n_columns(n_categories: int) -> int:
    return 1 + (n_categories - 1) // _ROWS


def _styled(names: Sequence[str]) -> list[Category]:
    """Give each category a colour, and from the 12th on also a different marker."""
    shapes = [MARKERS[i // len(MANY) % len(MARKERS)] for i in range(len(names))]
    return list(map(Category, names, category_colors(len(names)), shapes))


@lru_cache
def _outline(marker: str) -> Path:
    style = MarkerStyle(marker)
    return style.get_path().transformed(style.get_transform())
