"""Helpers of the figures of checks: choosing rows of a table, and data against replicates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from pyro_contrastive.analysis.ppc import PosteriorPredictiveCheck
from pyro_contrastive.analysis.ppc.statistics import CELL_STATISTICS, TRENDS
from pyro_contrastive.data.levels import position_of
from pyro_contrastive.plotting.style import FEW, INK, MARKERS, tidy

_INSIDE, _OUTSIDE = "#0072B2", "#D55E00"
_MANY_POINTS = 5000
NAMES = {name: each.title for name, each in CELL_STATISTICS.items()}
NAMES |= {name: f"{NAMES[of]} against mean" for name, of in TRENDS.items()}
NAMES |= {
    "abs_correlation": "correlation",
    "log2_fold_change": "log2 fold change",
    "abs_log2_fold_change": "effect of treatment",
    "abs_difference": "effect of treatment",
    "effect_agreement": "agreement of effects",
}
PLURAL = {"gene": "genes", "cell": "cells", "bin": "bins", "pair": "gene pairs"}
UNITS = {name: each.unit for name, each in CELL_STATISTICS.items()}
ON_LOG_SCALE = {name for name, each in CELL_STATISTICS.items() if each.logs}


def draw_against(axes: Axes, chosen: pd.DataFrame, label: str, *, logs: bool, unit: str) -> Axes:
    """Draw replicates (x) against data (y), marked by whether they agree."""
    chosen = chosen[chosen[["observed", "replicate_mean"]].notna().all(axis=1)]
    if chosen.empty:
        raise ValueError(f"{label} is not defined for any {unit}")
    x, y = chosen["replicate_mean"].to_numpy(), chosen["observed"].to_numpy()
    out = (y < chosen["lower"].to_numpy()) | (y > chosen["upper"].to_numpy())
    low, high = _span(np.concatenate([x, y]), logs=logs)
    axes.plot([low, high], [low, high], color=INK, lw=1, zorder=1)
    size = 16 if len(x) < _MANY_POINTS else 5
    for inside, color, marker in ((True, _INSIDE, "o"), (False, _OUTSIDE, "^")):
        drawn = out != inside
        name = "within the interval" if inside else "outside of it"
        axes.scatter(
            x[drawn], y[drawn], s=size, c=color, marker=marker, linewidths=0, alpha=0.7,
            rasterized=True, label=f"{name} ({drawn.mean():.0%})", zorder=2,
        )  # fmt: skip
    if logs:
        axes.set(xscale="log", yscale="log")
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set(xlabel="mean of replicates", ylabel="data", title=label)
    axes.title.set_fontsize("medium")
    axes.legend(frameon=False, loc="upper left", handletextpad=0.2)
    return tidy(axes)


def _span(values: NDArray[np.float64], *, logs: bool) -> tuple[float, float]:
    if logs and (values > 0).any():
        positive = values[values > 0]
        return float(positive.min()) / 1.3, float(positive.max()) * 1.3
    margin = 0.05 * float(np.ptp(values)) or 1.0
    return float(values.min()) - margin, float(values.max()) + margin


def short_log_axis(axes: Axes) -> None:
    """Label a logarithmic x axis that may span about one decade: 0.2, 0.5, 1, 2 ..."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def legend_above(axes: Axes) -> None:
    """Put the legend above the axes, where it covers nothing."""
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=5, borderaxespad=0.2)


def name_of(statistic: str) -> str:
    """Return the name of a statistic in figures."""
    return NAMES.get(statistic, statistic)


def known_values(table: pd.DataFrame, column: str) -> list[str]:
    """Return the values of a column, each once, in order."""
    return list(dict.fromkeys(table[column].astype(str)))


def models_of(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return name, colour and marker of each model, in the order given."""
    column = table["model"]
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = [str(name) for name in column.cat.categories]
    else:
        names = known_values(table, "model")
    return [(n, FEW[i % len(FEW)], MARKERS[i % len(MARKERS)]) for i, n in enumerate(names)]


def rows_of_model(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of one model."""
    return table[table["model"].astype(str) == name]


def table_of(given: pd.DataFrame | PosteriorPredictiveCheck, *names: str) -> pd.DataFrame:
    """Return the given table, or that of the given check if it is clear which one is meant."""
    if isinstance(given, pd.DataFrame):
        return given
    tables = " or ".join(f"check.{name}" for name in names)
    if not isinstance(given, PosteriorPredictiveCheck):
        raise TypeError(f"pass the table {tables}, not a {type(given).__name__}")
    if len(names) > 1:
        raise TypeError(f"pass one table of the check: {tables}")
    table: pd.DataFrame = getattr(given, names[0])
    return table


def check_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise an error if the table has no rows, or lacks these or the common columns."""
    needed = {"model", "statistic", "group_by", "group", "observed", *columns}
    missing = sorted(needed - set(table.columns))
    if missing or table.empty:
        raise ValueError(f"table lacks {missing}" if missing else "table has no rows")


def rows_of_group(
    table: pd.DataFrame, group: tuple[str, str], columns: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the rows of one group of cells."""
    check_columns(table, columns)
    here = table[table["group_by"].astype(str) == group[0]]
    names = here["group"].astype(str)
    known = names.unique().tolist()
    position = position_of(group[1], known)
    found = here[names == known[position]] if position is not None else here[:0]
    if found.empty:
        pairs = table[["group_by", "group"]].astype(str).drop_duplicates()
        known = list(pairs.itertuples(index=False, name=None))
        raise ValueError(f"table has no group {group}; it has {known[:20]}")
    return found


def rows_of_statistic(
    table: pd.DataFrame, statistic: str, model: str | None, group: tuple[str, str]
) -> pd.DataFrame:
    """Return the rows of one statistic of one model in one group of cells."""
    found = rows_of_group(table, group)
    chosen = found[found["statistic"].astype(str) == statistic]
    if chosen.empty:
        raise ValueError(f"table has no {statistic!r}; it has {known_values(found, 'statistic')}")
    return rows_of_model(chosen, only_value(chosen, "model", model))


def only_value(
    table: pd.DataFrame, column: str, wanted: str | None, *, argument: str = "model"
) -> str:
    """Return the value asked for by an argument, or the only one."""
    known = known_values(table, column)
    if wanted is None and len(known) == 1:
        return known[0]
    position = None if wanted is None else position_of(wanted, known)
    if position is None:
        asked = f"several {argument}s" if wanted is None else f"no {argument} {wanted!r}"
        raise ValueError(f"table has {asked}: choose {argument}= one of {known}")
    return known[position]
