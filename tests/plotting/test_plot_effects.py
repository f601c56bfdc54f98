"""The volcano and the heat map of effects show the numbers of their tables."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from pyro_contrastive.plotting import plot_group_effects, plot_volcano

pytestmark = pytest.mark.usefixtures("untouched_matplotlib")
GENES = [f"gene{k}" for k in range(40)]


def means_table(seed: int = 0, **columns: str) -> pd.DataFrame:
    """A table of a test of means: 30 genes without a change, 8 with one, 2 rare."""
    rng = np.random.default_rng(seed)
    lfc = rng.normal(0, 0.1, 40)
    lfc[:8] = np.linspace(-4, 4, 8)
    p = np.where(np.arange(40) < 8, 10.0 ** -(np.arange(40) + 2), 0.5)
    p[7] = 0.0
    lfc[-2:], p[-2:] = np.nan, np.nan
    found = p < 0.05
    table = {"lfc": lfc, "lower": lfc - 0.5, "upper": lfc + 0.5, "p_value": p, "p_adj": p}
    return pd.DataFrame(table | {"is_de_fdr_0.05": found} | columns, index=GENES)


def effects() -> pd.DataFrame:
    """A table of effects on two groups of two donors and over all; gene0 has none in group b."""
    parts = []
    for k, (group, sample) in enumerate(
        (g, s) for g in ("a", "b") for s in ("d1", "d2", "all donors")
    ):
        lfc = np.linspace(-3, 3, 40) + 0.1 * k
        if group == "b":
            lfc[0] = np.nan
        found = {"lfc": lfc, "lower": lfc - 1, "upper": lfc + 1, "treatment": "drug"}
        parts.append(pd.DataFrame(found | {"group": group, "sample": sample}, index=GENES))
    return pd.concat(parts)


def names_in(axes) -> list[str]:
    return [text.get_text() for text in axes.texts if isinstance(text, Annotation)]


def drawn(axes, marker: str) -> dict[str, np.ndarray]:
    """Points by the word that begins their legend."""
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return {line.get_label().split()[0]: line.get_xydata() for line in lines}


def test_volcano_draws_every_tested_gene_where_it_is_and_counts_the_others() -> None:
    table = means_table()
    axes = plot_volcano(table, lfc_threshold=1.5)
    points = drawn(axes, "o")
    assert len(points["not"]) == 30
    higher = table[table["is_de_fdr_0.05"] & (table["lfc"] > 0) & (table["p_adj"] > 0)]
    np.testing.assert_allclose(
        points["higher"], np.column_stack([higher["lfc"], -np.log10(higher["p_adj"])])
    )
    assert len(points["lower"]) == 4
    (at_the_edge,) = (xy for xy in drawn(axes, "^").values() if len(xy))
    assert at_the_edge[0, 0] == pytest.approx(4.0)
    assert at_the_edge[0, 1] > -np.log10(table["p_adj"][table["p_adj"] > 0].min())
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "not tested, not drawn (2)" in legend
    assert "higher (4)" in legend
    assert "p-value 0 in floating point (1)" in legend
    levels = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert levels == [pytest.approx(-np.log10(0.05))]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [
        -1.5,
        1.5,
    ]


def test_volcano_names_the_most_certain_genes_without_overlaps() -> None:
    axes = plot_volcano(means_table(), n_labels=4)
    assert names_in(axes) == ["gene7", "gene6", "gene5", "gene4"]
    crowded = means_table()
    crowded["lfc"] = 1.0 + 0.001 * np.arange(40)
    crowded["p_adj"] = 1e-9
    crowded["is_de_fdr_0.05"] = True
    axes = plot_volcano(crowded, n_labels=40)
    axes.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line
    assert 5 < len(boxes) <= 40
    overlaps = [a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(overlaps)
    chosen = plot_volcano(means_table(), genes=["gene20", "gene6"])
    assert set(names_in(chosen)) == {"gene20", "gene6"}
    plt.close("all")


def test_volcano_has_a_panel_for_every_comparison_and_stratum() -> None:
    table = pd.concat(
        [
            means_table(seed, comparison=f"drug{d} vs control", stratum=s)
            for seed, (d, s) in enumerate((d, s) for d in (1, 2) for s in ("B", "T"))
        ]
    )
    panels = plot_volcano(table, y="p_value")
    assert [panel.get_title() for panel in panels] == [
        "drug1 vs control, B",
        "drug1 vs control, T",
        "drug2 vs control, B",
        "drug2 vs control, T",
    ]
    one = Figure().subplots()
    assert plot_volcano(table[(table["stratum"] == "B")].iloc[:40], ax=one) is one
    assert one.get_title() == "drug1 vs control"
    with pytest.raises(ValueError, match="ax is for one panel, but table has 4"):
        plot_volcano(table, ax=one)


def test_heat_map_draws_the_effects_marks_and_gaps() -> None:
    table = effects()
    axes = plot_group_effects(table, genes=["gene39", "gene20", "gene0"])
    (image,) = axes.images
    values = image.get_array()
    assert values.shape == (3, 6)
    np.testing.assert_allclose(values[0], 3 + 0.1 * np.arange(6))
    assert values.mask[2].tolist() == [False] * 3 + [True] * 3
    assert image.get_clim() == (pytest.approx(-3.5), pytest.approx(3.5))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["d1", "d2", "all donors"] * 2
    assert names_in(axes) == ["a", "b"]
    marks = np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker() == "o"])
    assert {tuple(mark) for mark in marks} == {(k, 0) for k in range(6)} | {
        (k, 2) for k in range(3)
    }  # gene20 is near 0 everywhere
    (hatched,) = (c for c in axes.collections if isinstance(c, PatchCollection))
    assert len(hatched.get_paths()) == 3
    assert axes.get_xlabel() == "sample, by group\ndot: the interval excludes 0\nhatched: no number"


def test_heat_map_chooses_certain_changes_and_takes_tables_by_stratum() -> None:
    table = effects()
    wide = table["sample"].eq("d1") & (table.index == "gene39")
    table.loc[wide, ["lower", "upper"]] = [-5.0, 11.0]
    axes = plot_group_effects(table[table["sample"] == "d1"], n_genes=3, limit=1.0)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gene38", "gene37", "gene0"]
    assert axes.images[0].get_clim() == (-1.0, 1.0)
    only = Figure().subplots()
    by_type = pd.concat([means_table(k, stratum=name) for k, name in enumerate("BT")])
    assert plot_group_effects(by_type, genes=["gene7"], ax=only) is only
    assert [label.get_text() for label in only.get_xticklabels()] == ["B", "T"]
    assert "dot: false discovery rate 0.05" in only.get_xlabel()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot_volcano(means_table().drop(columns="p_adj")), "no column 'p_adj'"),
        (lambda: plot_volcano(means_table().iloc[:0]), "no rows"),
        (lambda: plot_volcano(means_table(), y="q"), "y must be"),
        (lambda: plot_volcano(means_table(), genes=["IL6"]), "IL6"),
        (lambda: plot_group_effects(means_table()), "pass the result of model.get_group_effects"),
        (lambda: plot_group_effects(effects(), genes=["IL6"]), "IL6"),
        (lambda: plot_group_effects(effects(), genes="IL6"), "must be a list"),
        (lambda: plot_group_effects(effects(), n_genes=0), "must be positive"),
        (lambda: plot_group_effects(effects().assign(lfc=np.nan)), "no effect"),
    ],
)
def test_wrong_arguments(draw, message) -> None:
    with pytest.raises(ValueError, match=message):
        draw()
