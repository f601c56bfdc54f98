"""Figures show the numbers they were given, and leave no trace behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_contrastive.analysis.embedding import embed_2d
from pyro_contrastive.plotting import plot_embedding, plot_history, plot_scores

pytestmark = pytest.mark.usefixtures("untouched_matplotlib")

SCORES = pd.DataFrame(
    {
        "latent": ["background", "salient", "salient"],
        "of": ["condition", "condition", "labels"],
        "measure": ["mixing", "silhouette", "NMI"],
        "value": [0.9, -0.2, 0.1],
        "best": ["high", "high", "low"],
    }
)


def table(name: str, values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({name: values}, index=pd.RangeIndex(len(values), name="epoch"))


def history() -> dict[str, pd.DataFrame]:
    return {
        "elbo_train": table("elbo_train", [9, 5, 4, 3.0]),
        "elbo_validation": table("elbo_validation", [9, np.nan, 4.5, 5.0]),
        "kl_weight": table("kl_weight", [0, 0.5, 1, 1]),
        "train_loss_epoch": table("train_loss_epoch", [1, 1, 1, 1.0]),
    }


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


@pytest.mark.parametrize(
    "draw",
    [
        lambda **ax: plot_history(history(), **ax),
        lambda **ax: plot_embedding(np.eye(2), ["a", "b"], **ax),
        lambda **ax: plot_scores(SCORES, **ax),
    ],
    ids=["history", "embedding", "scores"],
)
def test_given_axes_are_used_and_none_are_made(draw: Callable[..., Axes], ax: Axes) -> None:
    assert draw(ax=ax) is ax
    assert plt.get_fignums() == []
    assert draw().figure.number in plt.get_fignums()
    assert ax.get_xlabel()
    ax.figure.savefig("/dev/null", format="png")


def curves(ax: Axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_history_draws_both_curves_without_unmeasured_epochs(ax: Axes) -> None:
    drawn = curves(plot_history(history(), ax=ax))
    np.testing.assert_array_equal(drawn["training cells"], [[0, 9], [1, 5], [2, 4], [3, 3]])
    np.testing.assert_array_equal(drawn["held-out cells"], [[0, 9], [2, 4.5], [3, 5]])
    np.testing.assert_array_equal(drawn["best held-out: 4.5 at epoch 2"], [[2, 4.5]])


def test_history_shades_the_warm_up(ax: Axes) -> None:
    (patch,) = plot_history(history(), ax=ax).patches
    extents = patch.get_path().transformed(patch.get_patch_transform()).get_extents()
    assert (extents.x0, extents.width) == (0, 1)


def test_history_skips_what_is_missing_and_falls_back_to_the_loss(ax: Axes) -> None:
    drawn = curves(plot_history({"elbo_train": history()["elbo_train"]}, ax=ax))
    assert list(drawn) == ["training cells"]
    other = Figure().subplots()
    plot_history({"train_loss_epoch": history()["train_loss_epoch"]}, ax=other)
    np.testing.assert_array_equal(curves(other)["training cells"][:, 1], [1, 1, 1, 1])
    assert other.get_ylabel().startswith("loss")


def test_history_without_any_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="it has: kl_weight"):
        plot_history({"kl_weight": history()["kl_weight"]})


def test_scores_are_drawn_at_their_values(ax: Axes) -> None:
    plot_scores(SCORES, ax=ax)
    dots = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_array_equal(dots, [[0.9, 0], [-0.2, 1], [0.1, 2]])
    ends = {
        line.get_ydata()[0]: line.get_xdata()[0] for line in ax.lines if line.get_marker() in "<>"
    }
    assert ends == {0: 1.0, 1: 1.0, 2: -0.2}
    assert [text.get_text() for text in ax.texts] == ["0.90", "-0.20", "0.10"]
    assert ax.get_yticklabels()[1].get_text() == "condition: silhouette (salient)"


def test_scores_beyond_one_stay_in_the_figure_with_their_number(ax: Axes) -> None:
    table = SCORES.assign(value=[1.3, -0.001, 0.0])
    plot_scores(table, ax=ax)
    assert [text.get_text() for text in ax.texts] == ["1.30", "0.00", "0.00"]
    assert ax.get_xlim()[0] < 0
    assert ax.get_xlim()[1] > 1.3
    ax.figure.draw_without_rendering()
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    triangles = [line for line in ax.lines if line.get_marker() in "<>"]
    extents = [line.get_window_extent() for line in (*dots, *triangles)]
    numbers = [text.get_window_extent() for text in ax.texts]
    assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in extents)
    for triangle in extents[len(dots) :]:
        assert not triangle.count_overlaps([*extents[: len(dots)], *numbers])
        left_of_axis = [label.get_window_extent() for label in ax.get_yticklabels()]
        assert not triangle.count_overlaps(left_of_axis)


def test_scores_refuse_tables_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match="table lacks \\['best'\\]"):
        plot_scores(SCORES.drop(columns="best"))
    with pytest.raises(ValueError, match="no rows"):
        plot_scores(SCORES.iloc[:0])


def blobs() -> tuple[np.ndarray, np.ndarray]:
    which = np.repeat([0, 1], 30)
    return np.random.default_rng(0).normal(size=(60, 5)) + 30 * which[:, None], which


@pytest.mark.parametrize("method", ["tsne", "pca", pytest.param("umap", marks=pytest.mark.slow)])
def test_maps_keep_distant_groups_apart_and_repeat(method: Any) -> None:
    if method == "umap":
        pytest.importorskip("umap", exc_type=ImportError)
    latent, which = blobs()
    coords = embed_2d(latent, method, seed=1)
    assert coords.shape == (60, 2)
    distance = np.linalg.norm(coords[:, None] - coords[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (which[distance.argmin(axis=1)] == which).all()
    np.testing.assert_array_equal(coords, embed_2d(latent, method, seed=1))


def test_pca_of_a_plane_keeps_every_distance() -> None:
    plane = np.random.default_rng(0).normal(size=(12, 2))
    coords = embed_2d(plane, "pca")
    before, after = (np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (plane, coords))
    np.testing.assert_allclose(after, before, atol=1e-12)


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_one_latent_dimension_can_be_mapped(method: Any) -> None:
    coords = embed_2d(np.arange(12.0)[:, None], method)
    assert coords.shape == (12, 2)
    assert np.ptp(coords[:, 0]) > 0


def test_a_collapsed_latent_maps_to_one_point() -> None:
    assert (embed_2d(np.full((9, 3), 2.0)) == 0).all()


def test_umap_without_umap_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="pip install umap-learn"):
        embed_2d(blobs()[0], "umap")


@pytest.mark.parametrize(
    ("latent", "method", "message"),
    [
        (np.zeros((3, 2)), "pca", "at least 4 cells"),
        (np.zeros(9), "pca", "at least 4 cells"),
        (np.full((9, 2), np.inf), "pca", "not finite"),
        (np.eye(9), "isomap", "one of tsne, umap, pca, not 'isomap'"),
    ],
)
def test_maps_refuse_what_they_cannot_map(latent: Any, method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed_2d(latent, method)
