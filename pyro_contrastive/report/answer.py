"""The first section of the page: which genes respond, in words, tables and figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pyro_contrastive.analysis.null_check import NullCheck
from pyro_contrastive.plotting import plot_group_effects, plot_volcano
from pyro_contrastive.report.figures import FigureSet
from pyro_contrastive.report.genes import TABLES, GeneTables
from pyro_contrastive.report.page import Answer, ReportTable

__all__ = ["add_gene_figures", "answer_of", "in_words"]

_TOP_GENES, _GENES_PER_LABEL, _MOST_VOLCANOES = 20, 8, 4
_WIDEST = 30
"""Columns of the heat map, at most."""


def answer_of(
    tables: GeneTables,
    label_name: str,
    *,
    cautions: Sequence[str],
    null: NullCheck | None = None,
    no_null: str = "",
) -> Answer:
    """Put the section together.

    Parameters
    ----------
    tables
        The tables of genes.
    label_name
        What the labels are called.
    cautions
        As in :class:`~pyro_contrastive.report.page.Answer`; reasons why something was not made are
        added to them.
    null, no_null
        The comparison with shuffled conditions, or why there is none.
    """
    reasons = tables.reasons
    limits = [*cautions]
    if "donors" in reasons:
        limits.append(f"Donors are not the replicates: {reasons['donors']}")
    limits += [
        f"{TABLES[name]} was not made: {reasons[name].rstrip('.')}."
        for name in TABLES
        if name in reasons
    ]
    if null is None:
        limits.append(f"Nothing says what shuffled conditions would give: {no_null.rstrip('.')}.")
    verdict = [] if null is None else [null.verdict]
    held_against = None if null is None else _null_table(null)
    if tables.genes is None:
        return Answer(sentences=verdict, cautions=limits, null=held_against)
    shown = [table for table in (_top(tables), _per_label(tables, label_name)) if table is not None]
    sentences = [*verdict, *in_words(tables)]
    return Answer(sentences=sentences, cautions=limits, tables=shown, null=held_against)


def in_words(tables: GeneTables) -> list[str]:
    """Say how many genes were found, in each comparison, and what the replicates were."""
    if tables.genes is None:
        return []
    lines = []
    for name, rows in _comparisons(tables.genes):
        n_found, n_tested = int(rows[tables.tagged].sum()), int(rows["p_value"].notna().sum())
        found = f"{n_found:,} of the {n_tested:,} genes tested differ"
        if not n_found:
            found = f"None of the {n_tested:,} genes tested differs"
        by = "" if not tables.request.lfc_threshold else _beyond(tables.request.lfc_threshold)
        lines.append(
            f"{name}: {found}{by}, at a false discovery rate of {tables.request.fdr_target:.0%}."
        )
    notes = tables.genes.loc[tables.genes[tables.tagged], "note"]
    if sex := sorted(set(notes.index[notes != ""])):
        lines.append(
            f"Among them are genes that tell the sexes apart ({', '.join(sex[:5])}): the sides may "
            "hold donors of different sex, and other differences may be the donors' too."
        )
    lines.append(_replicates(tables))
    return lines


def add_gene_figures(figures: FigureSet, tables: GeneTables, label_name: str) -> None:
    """Draw a volcano for each of a few comparisons, and a heat map of effects."""
    if tables.genes is None:
        return
    comparisons = list(_comparisons(tables.genes))[:_MOST_VOLCANOES]
    for at, (name, rows) in enumerate(comparisons):
        figure = Figure(figsize=(6.6, 4.8), layout="constrained")
        plot_volcano(rows, lfc_threshold=tables.request.lfc_threshold, ax=figure.subplots())
        figures.add(
            figures.genes,
            "volcano" if len(comparisons) == 1 else f"volcano_{at + 1}",
            figure,
            title=f"Every gene: {name}",
            alt=f"Volcano plot of {len(rows):,} genes: log2 fold change against evidence.",
            reading="Right: higher in the first group, left: lower. The higher a gene is drawn, "
            "the surer the difference; genes above the dashed line are found.",
        )
    effects = _drawn_effects(tables)
    if effects is None:
        return
    width = 3.6 + 0.36 * effects[[c for c in _COLUMNS if c in effects]].drop_duplicates().shape[0]
    figure = Figure(figsize=(min(max(width, 5.5), 14), 7.4), layout="constrained")
    plot_group_effects(effects, ax=figure.subplots())
    figures.add(
        figures.genes,
        "effects",
        figure,
        title=f"The effect by {label_name}" + (" and donor" if tables.sample_key else ""),
        alt=f"Heat map of the log2 fold change of genes by {label_name}.",
        reading="The genes whose change is largest with certainty in some column. Dots: the "
        "interval excludes 0. Hatched: too few cells or counts; effects.csv says which.",
    )


_COLUMNS = ("treatment", "group", "sample")


def _drawn_effects(tables: GeneTables) -> pd.DataFrame | None:
    """Effects that a figure has room for: of every donor, or else of all donors together."""
    effects = tables.effects
    if effects is None or not effects["lfc"].notna().any():
        return None
    keys = [name for name in _COLUMNS if name in effects and effects[name].nunique() > 1]
    if not keys:  # a single column says no more than the volcano
        return None
    if len(effects[keys].drop_duplicates()) > _WIDEST and "sample" in effects:
        effects = effects[effects["sample"] == "all donors"]
    names = effects[keys].astype(str).agg(tuple, axis=1)
    effects = effects[names.isin(list(dict.fromkeys(names))[:_WIDEST])]
    return effects if effects["lfc"].notna().any() else None


def _comparisons(genes: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    if "comparison" not in genes:
        yield "first group vs second", genes
        return
    for name, rows in genes.groupby("comparison", sort=False, observed=True):
        yield str(name), rows


def _beyond(threshold: float) -> str:
    return f" by more than {threshold:g} (log2)"


def _replicates(tables: GeneTables) -> str:
    if tables.sample_key is not None:
        return (
            f"Donors ({tables.sample_key}) are the replicates: the answer holds for donors like "
            "these."
        )
    return (
        "Cells are the replicates: the answer holds for the donors that these cells are from, and "
        "says nothing of others. With several donors on each side, name their column "
        "(--sample-key)."
    )


def _null_table(null: NullCheck) -> ReportTable:
    """Put what the fit finds beside what fits to shuffled conditions find."""
    table = null.table.set_index("meaning")[["observed", "null_mean", "null_max", "stands_out"]]
    names = {"null_mean": "shuffled, mean", "null_max": "shuffled, most", "stands_out": "more"}
    table = table.rename(columns=names).rename_axis("what is found")
    table["more"] = np.where(table["more"], "yes", "no")
    within = f", within {' and '.join(null.within)}" if null.within else ""
    return ReportTable(
        title="Would shuffled conditions look like this?",
        table=table,
        reading=f"The same fit was made {null.n_shuffles} times to shuffled conditions{within}, "
        "where there is nothing to find. What the real fit finds counts only where it is clearly "
        "more. All but the genes are of cells that did not train.",
    )


def _top(tables: GeneTables) -> ReportTable | None:
    """List the genes found with the most certainty."""
    assert tables.genes is not None
    found = tables.genes[tables.genes[tables.tagged]]
    if found.empty:
        return None
    several = tables.genes["comparison"].nunique() > 1 if "comparison" in tables.genes else False
    top = found.sort_values("p_value", kind="stable").head(_TOP_GENES)
    columns: Mapping[str, pd.Series] = {"comparison": top["comparison"]} if several else {}
    shown = pd.DataFrame(
        {
            **columns,
            "log2 fold change": top["lfc"].map("{:+.2f}".format),
            "95 % interval": [
                f"{low:+.2f} to {high:+.2f}"
                for low, high in zip(top["lower"], top["upper"], strict=True)
            ],
            "adjusted p": top["p_adj"],
            "mean count, first group": top["mean1"],
            "mean count, second group": top["mean2"],
            "note": top["note"],
        },
        index=top.index,
    )
    if (shown["note"] == "").all():
        shown = shown.drop(columns="note")
    return ReportTable(
        title="The surest genes",
        table=shown,
        reading=f"The first {len(shown)} of {len(found):,}; genes.csv has all of them, also those "
        "that were not found or not tested. Compared are cells that are alike in the background "
        "latent, so that a difference in depth or in cell types does not count as response. Mean "
        "counts are those of a cell of average depth.",
    )


def _per_label(tables: GeneTables, label_name: str) -> ReportTable | None:
    """How many genes respond in the cells of each label, and which first."""
    rows = tables.by_label
    if rows is None:
        return None
    keys = [k for k in ("comparison", "stratum") if k in rows and rows[k].nunique() > 1]
    keys = keys or ["stratum"]
    lines = []
    for values, of in rows.groupby(keys, sort=False, observed=True):
        found = of[of[tables.tagged]].sort_values("p_value", kind="stable")
        first = found.index[:_GENES_PER_LABEL].astype(str)
        name = ", ".join(map(str, values if isinstance(values, tuple) else (values,)))
        cells = {"treated cells": int(of["n_cells1"].max()), "others": int(of["n_cells2"].max())}
        lines.append({label_name: name, **cells, "found": len(found), "first": ", ".join(first)})
    table = pd.DataFrame(lines).set_index(label_name).sort_values("found", ascending=False)
    return ReportTable(
        title=f"By {label_name}",
        table=table,
        reading="How many genes differ among the cells of each label alone, and the surest of "
        "them. Few cells find few genes: a smaller number need not be a smaller response; compare "
        "the effects themselves. genes_by_label.csv has all genes.",
    )
