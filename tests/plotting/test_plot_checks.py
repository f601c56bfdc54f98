"""Figures of checks show the numbers of their tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from ppc_helpers import checked

from pyro_contrastive.analysis.ppc import PosteriorPredictiveCheck
from pyro_contrastive.plotting import (
    plot_correlations,
    plot_coverage,
    plot_effects,
    plot_groups,
    plot_misfit,
    plot_pit,
    plot_statistic,
    plot_trend,
)
from pyro_contrastive.plotting.style import FEW, INK

pytestmark = pytest.mark.usefixtures("untouched_matplotlib")


@pytest.fixture(scope="module")
def check() -> PosteriorPredictiveCheck:
    rng = np.random.default_rng(0)
    rate = rng.gamma(2, 2, 30)
    data = rng.poisson(rng.gamma(2, rate / 2, (60, 30)))
    labels = {
        "condition": np.resize(["control", "drug", "heat"], 60),
        "lane": np.resize([1, 2], 60),
    }
    given = {"groups": labels, "contrast": ("condition", "control"), "seed": 0}
    return PosteriorPredictiveCheck.compare(
        {
            "NB": checked(data, rng.poisson(rng.gamma(2, rate / 2, (20, 60, 30))), **given),
            "Poisson": checked(data, rng.poisson(rate, (20, 60, 30)), **given),
        }
    )


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


DRAWN: dict[str, Callable[..., Axes]] = {
    "misfit": lambda c, **ax: plot_misfit(c.overall, **ax),
    "genes": lambda c, **ax: plot_statistic(c.genes, "variance", model="NB", **ax),
    "cells": lambda c, **ax: plot_statistic(c.cells, "zero_fraction", model="Poisson", **ax),
    "effects": lambda c, **ax: plot_effects(c.effects, model="NB", treatment="drug", **ax),
    "correlations": lambda c, **ax: plot_correlations(c.correlations, model="NB", **ax),
    "groups": lambda c, **ax: plot_groups(c.overall, "cv", group_by="condition", **ax),
    "trend": lambda c, **ax: plot_trend(c.trends, **ax),
    "coverage": lambda c, **ax: plot_coverage(c.calibration, **ax),
    "pit": lambda c, **ax: plot_pit(c.pit, **ax),
}


@pytest.mark.parametrize("name", DRAWN)
def test_given_axes_are_used_and_none_are_made(name, check, ax):
    before = plt.get_fignums()
    assert DRAWN[name](check, ax=ax) is ax
    assert plt.get_fignums() == before
    assert DRAWN[name](check).figure.number in plt.get_fignums()
    assert ax.get_xlabel()
    assert ax.get_legend() is not None
    ax.figure.savefig("/dev/null", format="png")


def labelled(ax: Axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_misfit_draws_the_share_outside_of_each_model(check, ax):
    drawn = labelled(plot_misfit(check.overall, expected=0.2, ax=ax))
    names = [text.get_text() for text in ax.get_yticklabels()]
    row = names.index("variance (genes)")
    for model in ("NB", "Poisson"):
        table = check.overall.query(
            f"model == '{model}' and statistic == 'variance' and unit == 'gene' and group == 'all'"
        )
        assert table["share_outside"].tolist() == [x for x, y in drawn[model] if y == row]
    assert drawn["by chance (20%)"][:, 0].tolist() == [0.2, 0.2]
    assert {"effect of treatment (genes), drug", "effect of treatment (genes), heat"} <= set(names)
    of_lane = plot_misfit(check.overall, group=("lane", "1"), ax=Figure().subplots())
    assert len(labelled(of_lane)["NB"]) < len(drawn["NB"])


def test_misfit_draws_the_worst_lines_and_says_how_many_are_not(check, ax):
    plot_misfit(check.overall, n_lines=None, ax=ax)
    lines = [text.get_text() for text in ax.get_yticklabels()]
    drawn = labelled(ax)
    worst = np.zeros(len(lines))
    for model in ("NB", "Poisson"):
        x, y = drawn[model].T
        np.maximum.at(worst, y.astype(int), x)
    assert "not shown" not in ax.get_xlabel()
    few = plot_misfit(check.overall, n_lines=3, ax=Figure().subplots())
    shown = [text.get_text() for text in few.get_yticklabels()]
    assert shown == [line for line in lines if line in shown]
    left = [share for line, share in zip(lines, worst, strict=True) if line not in shown]
    assert len(shown) == 3
    assert max(left) <= min(worst[lines.index(line)] for line in shown)
    for model in ("NB", "Poisson"):
        given = dict(zip(drawn[model][:, 1], drawn[model][:, 0], strict=True))
        again = {shown[int(y)]: x for x, y in labelled(few)[model]}
        assert again == {line: given[lines.index(line)] for line in again}
    assert f"{len(lines) - 3} lines that fit better not shown" in few.get_xlabel()
    assert f"at most {max(left):.0%} outside" in few.get_xlabel()
    with pytest.raises(ValueError, match="n_lines must be at least 1, or None"):
        plot_misfit(check.overall, n_lines=0)


def test_points_outside_of_the_interval_have_a_colour_and_a_shape_of_their_own(check, ax):
    plot_statistic(check.genes, "variance", model="Poisson", ax=ax)
    table = check.genes.query("model == 'Poisson' and statistic == 'variance' and group == 'all'")
    out = (table["observed"] < table["lower"]) | (table["observed"] > table["upper"])
    within, outside = ax.collections
    for points, chosen in ((within, ~out), (outside, out)):
        expected = table.loc[chosen, ["replicate_mean", "observed"]].to_numpy()
        np.testing.assert_array_equal(points.get_offsets(), expected)
    assert to_hex(within.get_facecolor()[0]) != to_hex(outside.get_facecolor()[0])
    assert len(within.get_paths()[0]) != len(outside.get_paths()[0])
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"outside of it ({out.mean():.0%})" in texts
    assert ax.get_xlim() == ax.get_ylim()


def test_trend_draws_the_data_black_and_models_in_colours(check, ax):
    plot_trend(check.trends, "zero_fraction_trend", ax=ax)
    lines = {line.get_label(): line for line in ax.lines}
    table = check.trends.query(
        "model == 'NB' and statistic == 'zero_fraction_trend' and group == 'all'"
    )
    np.testing.assert_array_equal(lines["data"].get_ydata(), table["observed"])
    np.testing.assert_array_equal(lines["NB"].get_ydata(), table["replicate_mean"])
    assert [lines[n].get_color() for n in ("data", "NB", "Poisson")] == [INK, *FEW[:2]]


def test_coverage_and_ranks_are_drawn_against_what_they_should_be(check, ax):
    plot_coverage(check.calibration, ax=ax)
    table = check.calibration.query("model == 'Poisson' and group == 'all'")
    drawn = ax.containers[1].lines[0].get_ydata()
    expected = (table["observed"] - table["level"]).to_numpy(float)
    np.testing.assert_allclose(np.asarray(drawn, float), expected)
    other = plot_pit(check.pit, ax=Figure().subplots())
    share = check.pit.query("model == 'NB' and group == 'all'")["observed"].to_numpy()
    assert other.patches[0].get_data().values == pytest.approx(share * 20)


@pytest.mark.parametrize("spread", [1.0, 0.01, 0.0005])
def test_no_two_ticks_of_coverage_read_alike(spread, check, ax):
    table = check.calibration.assign(
        **{
            name: check.calibration["level"]
            + spread * (check.calibration[name] - check.calibration["level"])
            for name in ("observed", "lower", "upper")
        }
    )
    plot_coverage(table, ax=ax)
    ticks = {tick: float(ax.yaxis.get_major_formatter()(tick)) for tick in ax.get_yticks()}
    assert len(ticks) == len(set(ticks.values())) > 2
    assert list(ticks.values()) == pytest.approx([100 * tick for tick in ticks])


def test_levels_close_to_one_are_distinguished(check, ax):
    table = check.calibration.assign(
        level=check.calibration["level"].replace({0.9: 0.99, 0.95: 0.999})
    )
    plot_coverage(table, ax=ax)
    assert {"99%", "99.9%"} <= {text.get_text() for text in ax.get_xticklabels()}


def test_groups_are_drawn_one_by_one(check, ax):
    plot_groups(check.overall, "zero_fraction", group_by="lane", ax=ax)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["1", "2"]
    table = check.overall.query(
        "group_by == 'lane' and statistic == 'zero_fraction' and unit == 'gene'"
    )
    data = next(c for c in ax.collections if c.get_label() == "data")
    observed = [segment[0][0] for segment in data.get_segments()]
    assert observed == table.query("model == 'NB'")["observed"].tolist()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda c: plot_statistic(c.genes, "variance"),
            r"several models: choose model= one of \['NB'",
        ),
        (lambda c: plot_statistic(c.genes, "sd", model="NB"), r"no 'sd'; it has \['mean'"),
        (lambda c: plot_statistic(c.genes, "mean", model="X"), r"no model 'X': choose model="),
        (lambda c: plot_statistic(c.genes, "mean", group=("lane", "3")), r"no group \('lane', '3'"),
        (
            lambda c: plot_effects(c.effects, model="NB"),
            r"several treatments: choose treatment= one of \['drug', 'heat'\]",
        ),
        (lambda c: plot_effects(c.effects, model="NB", treatment="cold"), "no treatment 'cold'"),
        (lambda c: plot_trend(c.trends, "trend"), "no 'trend'; it has"),
        (
            lambda c: plot_groups(c.overall, "cv", group_by="donor"),
            r"no groups by 'donor'.* in adata.obs .*one of \['all', 'condition', 'lane'\]",
        ),
        (
            lambda c: plot_groups(c.overall, "sd", group_by="lane"),
            r"no statistic 'sd' of genes by 'lane'; it has \['mean', 'variance'",
        ),
        (
            lambda c: plot_groups(c.overall, "cv", group_by="lane", unit="genes"),
            r"no unit 'genes' by 'lane'; it has \['gene'",
        ),
        (lambda c: plot_pit(c.pit[:0]), "table has no rows"),
        (lambda c: plot_coverage(c.genes), r"table lacks \['level'\]"),
    ],
)
def test_what_cannot_be_drawn(draw, message, check):
    with pytest.raises(ValueError, match=message):
        draw(check)


OF_THE_CHECK: dict[str, Callable[..., Axes]] = {
    "misfit": plot_misfit,
    "effects": lambda c, **ax: plot_effects(c, model="NB", treatment="drug", **ax),
    "correlations": lambda c, **ax: plot_correlations(c, model="NB", **ax),
    "groups": lambda c, **ax: plot_groups(c, "cv", group_by="condition", **ax),
    "trend": plot_trend,
    "coverage": plot_coverage,
    "pit": plot_pit,
}


def png(ax: Axes) -> bytes:
    buffer = BytesIO()
    ax.figure.savefig(buffer, format="png")
    return buffer.getvalue()


@pytest.mark.parametrize("name", OF_THE_CHECK)
def test_a_check_can_be_given_in_place_of_its_table(name, check):
    drawn, expected = (
        png(draw[name](check, ax=Figure().subplots())) for draw in (OF_THE_CHECK, DRAWN)
    )
    assert drawn == expected


def test_misfit_takes_the_interval_of_the_check(check, ax):
    plot_misfit(replace(check, interval=0.8), ax=ax)
    assert labelled(ax)["by chance (20%)"][:, 0] == pytest.approx([0.2, 0.2])


def test_what_is_no_table_is_named(check):
    with pytest.raises(TypeError, match=r"one table of the check: check.genes or check.cells"):
        plot_statistic(check, "mean")
    with pytest.raises(TypeError, match=r"pass the table check.overall, not a dict"):
        plot_misfit({"NB": check})
