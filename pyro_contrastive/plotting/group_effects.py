"""Matplotlib figure of effects by gene and group of cells: a heat map of their table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pyro_contrastive.plotting.style import GREY, INK, new_axes

__all__ = ["plot_group_effects"]

_KEYS = ("treatment", "comparison", "group", "stratum", "sample")
_TAGGED = "is_de_fdr_"
_DARK = 0.6  # of the largest colour: beyond it, marks are white
_LETTERS_PER_COLUMN = 4.5
_OVER_ALL = "all donors"


def plot_group_effects(
    table: pd.DataFrame,
    *,
    genes: Sequence[str] | None = None,
    n_genes: int = 30,
    limit: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw effects as a heat map of genes by groups of cells (and samples, and treatments).

    Parameters
    ----------
    table
        Result of :meth:`pyro_contrastive.ContrastiveVI.get_group_effects`, or of
        ``model.differential_expression(mode="means", by_stratum=True)``. Choose rows first to draw
        fewer columns, for example those of all donors.
    genes
        Which genes, in this order. Default: see `n_genes`.
    n_genes
        Number of genes to draw if none are named: those with the largest change that is certain
        (the end of the interval that is nearer to 0) in any column, from higher to lower.
    limit
        log2 fold change at which colours end. Default: the largest that is drawn.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        A row per gene, a column per group; samples of a group are side by side. Red is higher in
        treated cells and blue lower, white is no change. A dot marks effects that were found (or
        whose interval excludes 0, in a table of effects). Hatched fields have no number: the table
        says why.

    Raises
    ------
    ValueError
        If the table is none of the two, a gene is not in it, it has no effects, or `n_genes` or
        `limit` is not positive.
    """
    keys = _check(table, genes, n_genes, limit)
    columns = table[keys].astype(str).agg(tuple, axis=1)
    names = list(dict.fromkeys(columns))
    wide = table.assign(column=columns, mark=_marked(table))
    lfc, lower, upper, mark = (
        wide.pivot(columns="column", values=name)[names]
        for name in ("lfc", "lower", "upper", "mark")
    )
    if genes is None:
        chosen = _certain(lfc, lower, upper)[:n_genes]
        genes = list(lfc.loc[chosen].mean(axis=1).sort_values(ascending=False).index)
    values = lfc.loc[list(genes)].to_numpy(dtype=float)
    if not np.isfinite(values).any():
        raise ValueError("table has no effect of these genes; its column not_estimated says why")
    largest = float(np.nanmax(np.abs(values))) if limit is None else limit
    height, width = values.shape
    axes = ax if ax is not None else new_axes(2.6 + 0.32 * width, 1.9 + 0.2 * height)
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto"
    )
    missing = ~np.isfinite(values)
    _hatch(axes, missing)
    marks = mark.loc[list(genes)].fillna(value=False).to_numpy(dtype=bool) & ~missing
    _dots(axes, marks, np.abs(values) > _DARK * largest)
    axes.set_yticks(range(height), genes, fontsize="small")
    _name_columns(axes, names)
    axes.set_xlabel(
        _explained(table, keys, marked=bool(marks.any()), missing=bool(missing.any())),
        fontsize="small",
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    beyond = "both" if limit is not None and float(np.nanmax(np.abs(values))) > limit else "neither"
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.6, extend=beyond, pad=0.03)
    bar.set_label("log2 fold change of the mean")
    bar.outline.set_visible(False)
    return axes


def _check(
    table: pd.DataFrame, genes: Sequence[str] | None, n_genes: int, limit: float | None
) -> list[str]:
    """Refuse what cannot be drawn, and return the columns of the table that name its columns."""
    keys = [name for name in _KEYS if name in table]
    if table.empty or not {"lfc", "lower", "upper"} <= set(table.columns) or not keys:
        raise ValueError(
            "pass the result of model.get_group_effects(), or of model.differential_expression("
            'mode="means", by_stratum=True), not a table of '
            f"{len(table)} rows with the columns {list(table.columns)}"
        )
    if isinstance(genes, str):
        raise ValueError(f"genes must be a list: [{genes!r}]")
    unknown = [gene for gene in genes or () if gene not in table.index]
    if unknown:
        raise ValueError(f"genes that are not in table: {unknown}")
    if n_genes < 1 or (limit is not None and not limit > 0):
        raise ValueError(f"n_genes and limit must be positive, not {n_genes} and {limit}")
    several = [name for name in keys if table[name].nunique() > 1]
    return several or [name for name in keys if name in {"group", "stratum"}] or keys[:1]


def _marked(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Tell which effects were found: tagged, or with an interval that excludes 0."""
    tagged = [name for name in table.columns if str(name).startswith(_TAGGED)]
    if tagged:
        return table[tagged[0]].to_numpy(dtype=bool)
    return ((table["lower"] > 0) | (table["upper"] < 0)).to_numpy(dtype=bool)


def _certain(lfc: pd.DataFrame, lower: pd.DataFrame, upper: pd.DataFrame) -> pd.Index:
    """Return genes by the largest change that is certain in any column, the largest first."""
    nearer = np.maximum(lower.to_numpy(dtype=float), -upper.to_numpy(dtype=float))
    # Where nothing is certain: the interval that reaches least far beyond 0.
    best = np.where(np.isfinite(nearer), nearer, -np.inf).max(axis=1)
    size = np.abs(np.nan_to_num(lfc.to_numpy(dtype=float))).max(axis=1)
    order = np.lexsort((-size, -best))
    return lfc.index[order[np.isfinite(best[order])]]


def _hatch(axes: Axes, missing: NDArray[np.bool_]) -> None:
    """Draw the fields without a number."""
    fields = [Rectangle((column - 0.5, row - 0.5), 1, 1) for row, column in np.argwhere(missing)]
    hatched = PatchCollection(fields, hatch="/////", facecolor="#F4F4F4", edgecolor=GREY, lw=0)
    axes.add_collection(hatched)


def _dots(axes: Axes, marks: NDArray[np.bool_], dark: NDArray[np.bool_]) -> None:
    """Draw the marks, white on dark fields."""
    for chosen, color in ((marks & ~dark, INK), (marks & dark, "white")):
        rows, columns = np.nonzero(chosen)
        axes.plot(columns, rows, "o", ms=2.5, mew=0, color=color)


def _name_columns(axes: Axes, names: Sequence[tuple[str, ...]]) -> None:
    """Write the last key below each column, and the others above the columns they share."""
    axes.set_xticks(range(len(names)), [name[-1] for name in names], rotation=90, fontsize="small")
    start = 0
    for name, own in groupby(names, key=lambda name: ", ".join(name[:-1])):
        columns = list(own)
        end = start + len(columns)
        axes.annotate(
            name,
            ((start + end - 1) / 2, 1.0),
            (0, 4),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            va="bottom",
            rotation=90 if len(columns) < len(name) / _LETTERS_PER_COLUMN else 0,
            fontsize="small",
        )
        over_all = [at for at, column in enumerate(columns, start) if column[-1] == _OVER_ALL]
        for at in {start, *over_all} - {0}:
            axes.axvline(at - 0.5, color="white", lw=3)
        start = end


def _explained(table: pd.DataFrame, keys: Sequence[str], *, marked: bool, missing: bool) -> str:
    """Say what the columns are, and what marks and hatched fields mean."""
    lines = [keys[-1] if len(keys) == 1 else f"{keys[-1]}, by {' and '.join(keys[:-1])}"]
    tagged = [str(name) for name in table.columns if str(name).startswith(_TAGGED)]
    if marked and tagged:
        lines.append(f"dot: false discovery rate {tagged[0].removeprefix(_TAGGED)}")
    elif marked:
        lines.append("dot: the interval excludes 0")
    if missing:
        lines.append("hatched: no number")
    return "\n".join(lines)
