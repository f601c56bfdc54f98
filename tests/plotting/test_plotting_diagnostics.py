"""Figures of diagnostics show what they are given."""

from __future__ import annotations

from collections.abc import Iterator

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.analysis.calibration import Calibration
from pyro_contrastive.analysis.comparison import CellEstimates, compare
from pyro_contrastive.analysis.posterior_accuracy import PosteriorAccuracy
from pyro_contrastive.plotting import (
    plot_comparison,
    plot_latent_usage,
    plot_leakage,
    plot_pareto_k,
    plot_posterior_accuracy,
    plot_ranks,
)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    plt.switch_backend("agg")
    yield
    plt.close("all")


def texts(axes) -> str:
    drawn = [text.get_text() for text in axes.texts]
    ticks = [label.get_text() for label in axes.get_yticklabels()]
    return " ".join([*drawn, *ticks, axes.get_title(), axes.get_xlabel(), axes.get_ylabel()])


def test_pareto_k_by_group() -> None:
    axes = plot_pareto_k([0.1, 0.2, 0.9, np.inf], ["a", "a", "b", "b"], n_samples=1000)
    shown = texts(axes)
    assert "0% high" in shown
    assert "100% high" in shown
    assert "0.67: too high" in shown
    assert "Pareto k" in axes.get_xlabel()
    blue, red, beyond = (
        [line for line in axes.lines if line.get_marker() == marker] for marker in ("o", "^", ">")
    )
    assert sorted(x for line in blue for x in line.get_xdata()) == [0.1, 0.2]
    assert [x for line in red for x in line.get_xdata()] == [0.9]
    assert [x for line in beyond for x in line.get_xdata()] == [2.0]  # infinity: at the edge
    assert "above 2" in axes.get_xlabel()
    with pytest.raises(ValueError, match="3 values for 4 cells"):
        plot_pareto_k([1, 2, 3, 4], ["a"] * 3)


def test_ranks_in_and_out_of_the_band() -> None:
    rng = np.random.default_rng(0)
    ranks = pd.DataFrame({"even": rng.integers(0, 20, 200).astype(float), "low": np.zeros(200)})
    ranks.loc[:99, "low"] = np.nan
    panels = plot_ranks(Calibration(ranks, 19, "guide"))
    assert [panel.get_title() for panel in panels] == ["even", "low\nnot uniform"]
    stairs = panels[1].patches[-1].get_data()
    assert stairs.values[0] == 100
    assert stairs.values.sum() == 100
    assert panels[0].get_ylabel() == "simulated cells"
    assert all(panel.get_xlabel() == "rank of the truth" for panel in panels)
    one = plot_ranks(Calibration(ranks, 19, "guide"), ["low"])
    assert len(one) == 1


@pytest.mark.parametrize("reference", ["nuts", "refined"])
def test_encoder_compared_with_reference(reference: str) -> None:
    rng = np.random.default_rng(0)
    latents = pd.DataFrame({"site": ["z"] * 5 + ["s"] * 3 + ["library"]})
    for guide in {"encoder", "refined", reference}:
        latents[f"{guide}_mean"] = rng.normal(size=9)
        latents[f"{guide}_sd"] = rng.uniform(0.2, 1, 9)
    means, scales = plot_posterior_accuracy(PosteriorAccuracy(pd.DataFrame(), latents))
    assert ("NUTS" if reference == "nuts" else "refined posterior") in means.get_xlabel()
    shown = {line.get_label(): line for line in means.lines}
    np.testing.assert_array_equal(shown["s"].get_xdata(), latents[f"{reference}_mean"][5:8])
    np.testing.assert_array_equal(shown["s"].get_ydata(), latents["encoder_mean"][5:8])
    assert "log library size" in shown
    assert scales.get_xscale() == "log"


def test_usage_leakage_and_comparison() -> None:
    usage = pd.DataFrame(
        {
            "latent": ["background"] * 2 + ["salient"],
            "dimension": [0, 1, 0],
            "signal": [0.01, 0.9, 0.5],
            "used": [False, True, True],
        }
    )
    axes = plot_latent_usage(usage)
    assert [bar.get_height() for bar in axes.patches] == [0.9, 0.01, 0.5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "1", "1"]
    assert "background: 1 of 2 used" in texts(axes)
    assert (axes.get_ylim(), axes.get_ylabel()) == ((0, 1), "share of variance between cells")
    leakage = pd.DataFrame(
        {
            "latent": ["background", "salient"],
            "of": ["condition", "type"],
            "balanced_accuracy": [0.6, 0.25],
            "chance": [0.5, 0.2],
            "upper_chance": [0.55, np.nan],
        }
    )
    shown = texts(plot_leakage(leakage))
    assert "condition in background" in shown
    assert "60%" in shown
    values = np.array([-5.0, -6.0, -7.0])
    good = CellEstimates(values, values, np.zeros(3), np.zeros(3), 1000)
    bad = CellEstimates(values - 1, values - 1, np.ones(3), np.zeros(3), 1000)
    axes = plot_comparison(compare({"good": good, "bad": bad}, {}))
    assert "k high in 100%" in texts(axes)
    points = [line for line in axes.lines if line.get_marker() in {"o", "^"}]
    assert [line.get_xdata()[0] for line in points] == [0.0, -1.0]
    assert "nats per cell" in axes.get_xlabel()


@pytest.mark.parametrize("kind", ["salient", "background"])
def test_usage_in_nats_is_drawn_too(kind) -> None:
    adata = ad.AnnData(np.random.default_rng(0).poisson(3, (20, 4)).astype(np.float32))
    adata.obs["condition"] = np.repeat(["control", "treated"], 10)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    torch.manual_seed(0)
    model = ContrastiveVI(adata, n_salient_latent=3, n_background_latent=3, n_hidden=8)
    usage = model.get_latent_usage(kind)
    usage["active"] = usage["nats"] == usage["nats"].max()
    axes = plot_latent_usage(usage)
    assert [bar.get_height() for bar in axes.patches] == sorted(usage["nats"], reverse=True)
    order = np.argsort(-usage["nats"].to_numpy())
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(k + 1) for k in order]
    filled = [to_hex(bar.get_facecolor()) != "#ffffff" for bar in axes.patches]
    assert filled == [True, False, False]
    assert axes.get_ylim()[1] > usage["nats"].max()
    shown = texts(axes)
    assert shown.startswith("1 of 3 used")
    assert "nats per cell" in shown


def test_usage_refuses_other_tables_and_names_the_methods() -> None:
    message = r"model.latent_signal\(\) or model.get_latent_usage\(\).* columns \['k'\]"
    with pytest.raises(ValueError, match=message):
        plot_latent_usage(pd.DataFrame({"k": [0.5]}))
