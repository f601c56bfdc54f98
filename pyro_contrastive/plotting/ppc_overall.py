"""Matplotlib figures of averages over the statistics of checks: misfit, groups. See `ppc`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from pyro_contrastive.analysis.ppc import PosteriorPredictiveCheck
from pyro_contrastive.analysis.ppc.statistics import EFFECTS
from pyro_contrastive.analysis.ppc.verdicts import with_verdicts
from pyro_contrastive.plotting.ppc_parts import (
    PLURAL,
    UNITS,
    check_columns,
    known_values,
    legend_above,
    models_of,
    name_of,
    rows_of_group,
    rows_of_model,
    table_of,
)
from pyro_contrastive.plotting.style import FAINT, INK, new_axes, tidy

__all__ = ["plot_groups", "plot_misfit"]

_VERDICT_COLORS = {"close": INK, "look": "#B36B00", "off": "#A40122"}


def plot_misfit(
    overall: pd.DataFrame | PosteriorPredictiveCheck,
    *,
    expected: float | None = None,
    group: tuple[str, str] = ("all", "all"),
    n_lines: int | None = 20,
    ax: Axes | None = None,
) -> Axes:
    """Draw, for each statistic, the share of genes, cells or pairs that the model does not fit.

    Parameters
    ----------
    overall
        ``check.overall``, or the check itself.
    expected
        The share outside by chance: 1 - ``check.interval``. Default: that of the check if the check
        itself is given; 0.1 for its table.
    group
        Key and value: which cells; default all.
    n_lines
        Number of statistics to draw, starting with the worst fit in any model; the figure says how
        many are left out. None draws all: with many treatments, each a line, the figure is tall.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        A line per statistic, in the order of the table, and a marker per model; further right is
        worse. Given one model, the right margin says by how much the average differs in the data,
        with the verdict of ``check.summary()`` if it is not "close".

    Raises
    ------
    ValueError
        If the table has no such group, or lacks a column, or `n_lines` is less than 1.
    """
    if expected is None:
        expected = 1 - overall.interval if isinstance(overall, PosteriorPredictiveCheck) else 0.1
    overall = table_of(overall, "overall")
    table = rows_of_group(overall, group, ("unit", "share_outside"))
    if group == ("all", "all"):
        table = pd.concat([table, overall[overall["statistic"].isin(EFFECTS)]])
    table = table[(table["unit"].astype(str) != "data") & table["share_outside"].notna()]
    if table.empty:
        raise ValueError("overall has no statistic of genes, cells or pairs")
    labels = _line_labels(table)
    worst = table["share_outside"].groupby(labels, sort=False).max()
    lines = _worst_lines(worst, n_lines)
    table = table[labels.isin(lines)]
    axes = ax if ax is not None else new_axes(7.0, 1.3 + 0.34 * len(lines))
    axes.hlines(range(len(lines)), 0, 1, color=FAINT, zorder=1)
    for name, color, marker in models_of(table):
        chosen = table["model"].astype(str) == name
        y = [lines.index(label) for label in labels[table.index][chosen]]
        x = table.loc[chosen, "share_outside"]
        axes.plot(x, y, marker, color=color, ms=8, label=name, ls="", zorder=3, clip_on=False)
    axes.axvline(expected, color=INK, ls="--", lw=1, label=f"by chance ({expected:.0%})")
    axes.set_yticks(range(len(lines)), lines)
    axes.set(xlim=(0, 1), ylim=(len(lines) - 0.5, -0.5))
    one_model = len(models_of(table)) == 1
    axes.set_xlabel(
        f"share outside of the {1 - expected:.0%} interval of the replicates"
        + ("\nright margin: averages, data less replicates" if one_model else "")
        + _left_out(worst.drop(lines))
    )
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(axis="y", length=0, pad=8)  # so that a marker at 0 does not cover the labels
    if one_model:
        _write_differences(axes, table, labels[table.index], lines)
    legend_above(axes)
    return tidy(axes, left=False)


def _write_differences(
    axes: Axes, table: pd.DataFrame, labels: pd.Series[str], lines: list[str]
) -> None:
    """Write how much data and replicates differ on average beside each line."""
    for label, row in zip(labels, with_verdicts(table).itertuples(), strict=True):
        if not np.isfinite(row.difference):
            continue
        relative = row.difference_in == "relative"
        text = f"{row.difference:+.1%}" if relative else f"{row.difference:+.3f}"
        axes.annotate(
            text if row.verdict == "close" else f"{text}, {row.verdict}",
            (1.0, lines.index(label)),
            (10, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color=_VERDICT_COLORS[row.verdict],
        )


def plot_groups(
    overall: pd.DataFrame | PosteriorPredictiveCheck,
    statistic: str,
    *,
    group_by: str,
    unit: str = "gene",
    ax: Axes | None = None,
) -> Axes:
    """Draw a statistic averaged over genes or cells for each group of cells.

    Parameters
    ----------
    overall
        ``check.overall``, or the check itself.
    statistic
        One of the statistics in it.
    group_by
        Column of ``adata.obs`` that groups the cells.
    unit
        What the average is over: ``"gene"``, ``"cell"``, ``"pair"`` or ``"bin"``.
    ax
        Axes to draw on. Default: those of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        A line per group: the data in black, the interval of each model's replicates in colour.

    Raises
    ------
    ValueError
        If there is no such statistic or grouping; the error lists those available.
    """
    table = _rows_of_grouping(table_of(overall, "overall"), statistic, group_by, unit)
    groups = list(dict.fromkeys(table["group"].astype(str)))
    models = models_of(table)
    axes = ax if ax is not None else new_axes(6.4, 1.4 + (0.16 + 0.14 * len(models)) * len(groups))
    step = 0.6 / max(len(models), 1)
    for number, (name, color, marker) in enumerate(models):
        chosen = rows_of_model(table, name)
        y = np.array([groups.index(g) for g in chosen["group"].astype(str)])
        y = y + (number - (len(models) - 1) / 2) * step
        axes.hlines(y, chosen["lower"], chosen["upper"], color=color, lw=2.5)
        axes.plot(chosen["replicate_mean"], y, marker, color=color, ms=5, ls="", label=name)
    one = rows_of_model(table, models[0][0])
    places = [groups.index(group) for group in one["group"].astype(str)]
    axes.vlines(
        one["observed"], [p - 0.4 for p in places], [p + 0.4 for p in places], color=INK, lw=2,
        label="data", zorder=1,
    )  # fmt: skip
    axes.set_yticks(range(len(groups)), groups)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    unit_of = UNITS.get(statistic, "no unit")
    axes.set_xlabel(f"{name_of(statistic)}, mean over {PLURAL.get(unit, unit)} ({unit_of})")
    legend_above(axes)
    return tidy(axes)


def _rows_of_grouping(
    overall: pd.DataFrame, statistic: str, group_by: str, unit: str
) -> pd.DataFrame:
    """Return the rows of a statistic in all groups of one grouping; errors list what exists."""
    check_columns(overall, ("unit",))
    table = overall[overall["group_by"].astype(str) == group_by]
    if table.empty:
        known = known_values(overall, "group_by")
        raise ValueError(
            f"overall has no groups by {group_by!r}: group_by is the name of the column in "
            f"adata.obs that the check was made with, one of {known}"
        )
    for column, wanted in (("unit", unit), ("statistic", statistic)):
        found = table[table[column].astype(str) == wanted]
        if found.empty:
            known = known_values(table, column)
            what = "" if column == "unit" else f" of {PLURAL.get(unit, unit)}"
            raise ValueError(
                f"overall has no {column} {wanted!r}{what} by {group_by!r}; it has {known}"
            )
        table = found
    return table


def _line_labels(table: pd.DataFrame) -> pd.Series[str]:
    """Name each statistic with its unit, and with the treatment if it is an effect."""
    units = table["unit"].astype(str).map(lambda unit: PLURAL.get(unit, unit))
    names = table["statistic"].astype(str).map(name_of) + " (" + units + ")"
    effects = table["statistic"].isin(EFFECTS)
    return names.where(~effects, names + ", " + table["group"].astype(str))


def _worst_lines(worst: pd.Series[float], n_lines: int | None) -> list[str]:
    """Name the lines that fit worst, in the order they were given in."""
    if n_lines is not None and n_lines < 1:
        raise ValueError(f"n_lines must be at least 1, or None for all, not {n_lines}")
    first = worst.sort_values(ascending=False, kind="stable").index[:n_lines]
    return [str(line) for line in worst.index if line in first]


def _left_out(worst: pd.Series[float]) -> str:
    """Say how many lines are not drawn, and that they are not hidden misfits."""
    if worst.empty:
        return ""
    lines = "line that fits" if len(worst) == 1 else "lines that fit"
    return f"\n{len(worst)} {lines} better not shown: at most {worst.max():.0%} outside"
