"""Matplotlib figure of a test of every gene: size of the change against evidence for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pyro_contrastive.plotting.point_labels import label_points
from pyro_contrastive.plotting.style import FAINT, GREY, INK, LATENT_COLORS, tidy

__all__ = ["plot_volcano"]

_UP, _DOWN = LATENT_COLORS["salient"], LATENT_COLORS["background"]
_PER_ROW = 3
_PANEL = (4.6, 4.2)  # inches
_LEGEND_BELOW = 5.5  # letters: below the axis and its label, whatever the size of the panel
_TAGGED = "is_de_fdr_"


def plot_volcano(
    table: pd.DataFrame,
    *,
    y: Literal["p_adj", "p_value"] = "p_adj",
    n_labels: int = 12,
    genes: list[str] | None = None,
    lfc_threshold: float = 0.0,
    ax: Axes | None = None,
) -> Axes | NDArray[Any]:
    """Draw the log2 fold change of every gene against the evidence that it is not 0.

    Parameters
    ----------
    table
        Result of ``model.differential_expression(mode="means")``. With several comparisons, or
        several strata, each has a panel.
    y
        p-values to draw on the vertical axis: adjusted ones (default), or as they are.
    n_labels
        Number of genes to name in each panel: of those found, the most certain ones. A name for
        which there is no room is left out.
    genes
        Genes to name instead.
    lfc_threshold
        Draw vertical lines at this change and its negative, for example the ``lfc_threshold`` of
        the test.
    ax
        Axes to draw on, for a table of one comparison. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, or an array of them if the table has several comparisons or strata. Genes that
        were found are coloured, higher and lower ones differently. The dashed line is the false
        discovery rate at which they are found (for ``y="p_value"``, the largest p-value found). A
        p-value that is 0 in floating point is drawn as a triangle at the upper edge. The legend
        counts the genes that were not tested and are not drawn.

    Raises
    ------
    ValueError
        If the table is not of ``mode="means"`` or has no rows, a gene of `genes` is not in it, or
        `ax` is given for several panels.
    """
    tagged = _check(table, y, genes)
    panels = list(_panels(table))
    if len(panels) == 1:
        title, rows = panels[0]
        axes = ax if ax is not None else plt.subplots(figsize=_PANEL, layout="constrained")[1]
        return _draw(axes, rows, title, y, tagged, n_labels, genes, lfc_threshold)
    if ax is not None:
        names = [title for title, _ in panels]
        raise ValueError(f"ax is for one panel, but table has {len(panels)}: {names}; choose one")
    n_columns = min(_PER_ROW, len(panels))
    n_rows = -(-len(panels) // n_columns)
    size = (0.8 * _PANEL[0] * n_columns, 0.8 * _PANEL[1] * n_rows)
    figure, grid = plt.subplots(
        n_rows, n_columns, figsize=size, layout="constrained", squeeze=False
    )
    axes_of = list(grid.flat)
    for unused in axes_of[len(panels) :]:
        figure.delaxes(unused)
    for axes, (title, rows) in zip(axes_of, panels, strict=False):
        _draw(axes, rows, title, y, tagged, n_labels, genes, lfc_threshold)
    return np.asarray(axes_of[: len(panels)])


def _check(table: pd.DataFrame, y: str, genes: list[str] | None) -> str:
    """Refuse what cannot be drawn, and return the name of the column of genes found."""
    if y not in {"p_adj", "p_value"}:
        raise ValueError(f"y must be 'p_adj' or 'p_value', not {y!r}")
    missing = [name for name in ("lfc", "p_adj", "p_value") if name not in table]
    tagged = [name for name in table.columns if str(name).startswith(_TAGGED)]
    if missing or not tagged or table.empty:
        what = "no rows" if table.empty else f"no column {(missing or [_TAGGED + '...'])[0]!r}"
        raise ValueError(
            f'pass the result of model.differential_expression(mode="means"): table has {what}'
        )
    unknown = [gene for gene in genes or () if gene not in table.index]
    if unknown:
        raise ValueError(f"genes that are not in table: {unknown}")
    return str(tagged[0])


def _panels(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield title and rows of every comparison and stratum, in the order of the table's."""
    keys = [name for name in ("comparison", "stratum") if name in table]
    several = [name for name in keys if table[name].nunique() > 1]
    if not several:
        yield (str(table["comparison"].iloc[0]) if "comparison" in table else ""), table
        return
    for values, rows in table.groupby(several, sort=False, observed=True):
        yield ", ".join(str(value) for value in values), rows


def _draw(
    axes: Axes,
    rows: pd.DataFrame,
    title: str,
    y: str,
    tagged: str,
    n_labels: int,
    genes: list[str] | None,
    lfc_threshold: float,
) -> Axes:
    """Draw one panel."""
    drawn = rows[rows["lfc"].notna() & rows[y].notna()]
    n_left_out = len(rows) - len(drawn)
    x = drawn["lfc"].to_numpy(dtype=float)
    p = drawn[y].to_numpy(dtype=float)
    height, zero = _heights(p)
    found = drawn[tagged].to_numpy(dtype=bool)
    sets = (
        ("not found", ~found, GREY),
        ("higher", found & (x > 0), _UP),
        ("lower", found & (x < 0), _DOWN),
    )
    for name, chosen, color in sets:
        label = f"{name} ({int(chosen.sum()):,})"
        axes.plot(
            x[chosen & ~zero], height[chosen & ~zero], "o", ms=3.5, mew=0, color=color, label=label
        )
        axes.plot(x[chosen & zero], height[chosen & zero], "^", ms=5, mew=0, color=color)
    if zero.any():
        axes.plot([], [], "^", ms=5, color=INK, label=f"p-value 0 in floating point ({zero.sum()})")
    if n_left_out:
        axes.plot([], [], ls="", label=f"not tested, not drawn ({n_left_out:,})")
    _lines(axes, p, found, y, tagged, lfc_threshold)
    widest = max(float(np.abs(x).max(initial=0.0)), lfc_threshold, 0.5)
    axes.set(xlim=(-1.12 * widest, 1.12 * widest), ylim=(0, 1.1 * max(height.max(initial=0.0), 2)))
    axes.set_ylabel(f"-log10 of {'adjusted ' if y == 'p_adj' else ''}p-value")
    axes.set_xlabel("log2 fold change of the mean")
    axes.set_title(title, fontsize="medium")
    axes.legend(
        frameon=False, fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2,
        borderaxespad=_LEGEND_BELOW, handletextpad=0.2, columnspacing=1.0,
    )  # fmt: skip
    tidy(axes)
    first = drawn.index.isin(genes) if genes is not None else found
    order = np.flatnonzero(first)[np.lexsort((-np.abs(x[first]), -height[first]))]
    order = order if genes is not None else order[:n_labels]
    points = np.column_stack([x, height])
    label_points(axes, points[order], [str(g) for g in drawn.index[order]], points[found])
    return axes


def _heights(p: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return -log10 of p-values, with those that are 0 above all others, and which these are."""
    zero = p == 0
    with np.errstate(divide="ignore"):
        height = -np.log10(p)
    highest = height[~zero].max(initial=1.0)
    return np.where(zero, 1.05 * highest, height + 0.0), zero


def _lines(
    axes: Axes,
    p: NDArray[np.float64],
    found: NDArray[np.bool_],
    y: str,
    tagged: str,
    lfc_threshold: float,
) -> None:
    """Draw the thresholds."""
    target = float(tagged.removeprefix(_TAGGED))
    largest = target if y == "p_adj" else float(p[found].max(initial=0.0))
    if largest > 0:
        label = f"false discovery rate {target:g}"
        axes.axhline(-np.log10(largest), color=INK, ls="--", lw=0.8, label=label, zorder=1)
    axes.axvline(0, color=FAINT, lw=0.8, zorder=0)
    if lfc_threshold:
        for at in (-lfc_threshold, lfc_threshold):
            axes.axvline(at, color=INK, ls=":", lw=0.8, zorder=1)
