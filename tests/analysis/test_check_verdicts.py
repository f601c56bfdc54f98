"""Verdicts of predictive checks: a real difference that is small is not a misfit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from ppc_helpers import checked

from pyro_contrastive.analysis.ppc.verdicts import with_verdicts
from pyro_contrastive.plotting import plot_misfit

RNG = np.random.default_rng(0)
RATE = RNG.gamma(4, 1, 20)


def row(statistic="mean", observed=1.0, expected=1.0, half=0.001, apart=0.0):
    values = {"observed": observed, "replicate_mean": expected, "outside_by": apart}
    ends = {"lower": expected - half, "upper": expected + half}
    return pd.DataFrame([{"statistic": statistic} | values | ends])


@pytest.mark.parametrize(
    ("given", "difference", "kind", "verdict"),
    [
        ({"observed": 1.04}, 0.04, "relative", "close"),
        ({"observed": 0.85}, -0.15, "relative", "look"),
        ({"observed": 30.0, "expected": 20.0}, 0.5, "relative", "off"),
        ({"observed": 1.5, "half": 1.0}, 0.5, "relative", "close"),  # may be chance
        (
            {"statistic": "zero_fraction", "observed": 0.905, "expected": 0.9},
            0.005,
            "share",
            "close",
        ),
        ({"statistic": "coverage 0.8", "observed": 0.77, "expected": 0.8}, -0.03, "share", "look"),
        ({"statistic": "coverage 0.8", "observed": 0.7, "expected": 0.8}, -0.1, "share", "off"),
        ({"statistic": "abs_correlation", "observed": 0.1, "expected": 0.2}, -0.1, "corr", "look"),
        ({"statistic": "abs_log2_fold_change", "observed": 1, "expected": 2}, -1, "log2", "off"),
        ({"expected": 2.0, "observed": 2.0, "apart": 0.2}, 0.0, "relative", "look"),  # both ways
        ({"apart": 0.02}, 0.0, "relative", "close"),
        ({"observed": -1.0}, np.nan, "", "look"),  # no natural size
        ({"observed": -1.0, "half": 3.0}, np.nan, "", "close"),
        ({"observed": np.nan}, np.nan, "", ""),
    ],
)
def test_the_size_of_a_difference_decides(given, difference, kind, verdict) -> None:
    found = with_verdicts(row(**given)).iloc[0]
    assert found["difference"] == pytest.approx(difference, nan_ok=True)
    assert found["difference_in"].startswith(kind)
    assert bool(found["difference_in"]) == bool(kind)
    assert found["verdict"] == verdict


def summary(factor: float, dispersion: float = 0.0) -> pd.DataFrame:
    """Check Poisson replicates against data with `factor` times their mean, and more noise."""
    rng = np.random.default_rng(1)
    noise = rng.gamma(1 / dispersion, dispersion, (3000, 20)) if dispersion else 1.0
    data = rng.poisson(factor * RATE * noise, (3000, 20))
    replicates = rng.poisson(RATE, (25, 3000, 20))
    table = checked(data, replicates, seed=0).summary()
    return table[table["unit"] != "entry"].set_index(["unit", "statistic"])


def test_a_model_that_is_slightly_off_is_close_although_nothing_agrees() -> None:
    table = summary(1.02)
    mean = table.loc[("gene", "mean")]
    assert mean["reading"] == "higher in the data"
    assert mean["difference"] == pytest.approx(0.02, abs=0.01)
    assert mean["verdict"] == "close"


def test_genes_that_differ_in_both_directions_are_found() -> None:
    rng = np.random.default_rng(1)
    factor = np.where(np.arange(20) % 2, 1.6, 0.4)
    data = rng.poisson(4.0 * factor, (500, 20))
    table = checked(data, rng.poisson(4.0, (25, 500, 20)), seed=0).summary()
    mean = table.set_index(["unit", "statistic"]).loc[("gene", "mean")]
    assert abs(mean["difference"]) < 0.02
    assert mean["outside_by"] == pytest.approx(0.6 * 4.0, rel=0.1)
    assert mean["verdict"] == "off"


def test_a_wrong_mean_and_a_wrong_variance_are_found() -> None:
    assert summary(1.1).loc[("gene", "mean"), "verdict"] == "look"
    assert summary(1.5).loc[("gene", "mean"), "verdict"] == "off"
    wide = summary(1.0, dispersion=0.5)
    assert wide.loc[("gene", "mean"), "verdict"] == "close"
    assert wide.loc[("gene", "variance"), "verdict"] == "off"
    assert wide.loc[("gene", "variance"), "difference"] > 1.0


def test_the_figure_of_one_model_says_by_how_much() -> None:
    rng = np.random.default_rng(2)
    data = rng.poisson(1.5 * RATE, (200, 20))
    check = checked(data, rng.poisson(RATE, (20, 200, 20)), seed=0)
    axes = plot_misfit(check, ax=Figure().subplots())
    labels = [label.get_text() for label in axes.get_yticklabels()]
    texts = {labels[round(text.xy[1])]: text.get_text() for text in axes.texts}
    mean = check.summary().set_index(["unit", "statistic"]).loc[("gene", "mean"), "difference"]
    assert texts["mean (genes)"] == f"{mean:+.1%}, off"
    assert "right margin" in axes.get_xlabel()
    two = type(check).compare({"one": check, "other": check})
    assert not plot_misfit(two, ax=Figure().subplots()).texts
