"""Figures show the numbers they were given, and leave no trace behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

mpl.use("Agg")

import matplotlib.pyplot as plt

from pyro_contrastive.analysis.embedding import embed_2d
from pyro_contrastive.plotting import plot_embedding, plot_history, plot_scores
from pyro_contrastive.plotting.palette import category_colors
from pyro_contrastive.plotting.style import FEW, GREY, MANY

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


@pytest.fixture(autouse=True)
def untouched_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("plt.show was called"))
    before = mpl.rcParams.copy()
    yield
    assert mpl.rcParams == before
    plt.close("all")


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


def test_every_cell_has_the_colour_its_legend_says(ax: Axes) -> None:
    rng = np.random.default_rng(0)
    coords, labels = rng.normal(size=(60, 2)), np.array(["b", "c", "a"] * 20)
    plot_embedding(coords, labels, ax=ax, legend_title="kind", axis_name="PC", title="T")
    legend = ax.get_legend()
    assert legend.get_title().get_text() == "kind"
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["a", "b", "c"]
    colors = dict(zip(names, [handle.get_color() for handle in legend.legend_handles], strict=True))
    (points,) = ax.collections
    drawn = {
        tuple(at): to_hex(color)
        for at, color in zip(points.get_offsets().tolist(), points.get_facecolor(), strict=True)
    }
    assert drawn == {
        tuple(at): colors[label].lower() for at, label in zip(coords.tolist(), labels, strict=True)
    }
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("PC 1", "PC 2", "T")


def test_background_cells_are_grey_beneath_the_others_and_first_in_the_legend(ax: Axes) -> None:
    coords = np.stack([np.arange(90), np.zeros(90)], axis=1)
    labels = np.array(["drug", None, "control", "heat", "zinc"] * 18, dtype=object)
    plot_embedding(coords, labels, background="control", ax=ax)
    beneath, above = ax.collections
    is_background = labels == "control"
    assert set(beneath.get_offsets()[:, 0]) == set(coords[is_background, 0])
    assert set(above.get_offsets()[:, 0]) == set(coords[~is_background, 0])
    assert beneath.get_zorder() < above.get_zorder()
    assert {to_hex(color) for color in beneath.get_facecolor()} == {GREY.lower()}
    drawn = {to_hex(c) for c in above.get_facecolor()}
    assert len(drawn) == 4
    assert GREY.lower() not in drawn
    legend = ax.get_legend()
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["control", "drug", "heat", "zinc", "not labelled"]
    shown = dict(zip(names, (h.get_color() for h in legend.legend_handles), strict=True))
    at = {
        x: to_hex(c) for (x, _), c in zip(above.get_offsets(), above.get_facecolor(), strict=True)
    }
    for x, label in zip(coords[:, 0], labels, strict=True):
        if label != "control":
            assert at[x] == shown[label or "not labelled"].lower()


def test_background_beside_one_treatment_hides_none_and_is_hidden_by_none(ax: Axes) -> None:
    labels = pd.Categorical(np.tile([2, 1], 20), categories=[2, 1])
    plot_embedding(np.random.default_rng(0).normal(size=(40, 2)), labels, background=1, ax=ax)
    (points,) = ax.collections
    grey = [to_hex(color) == GREY.lower() for color in points.get_facecolor()]
    assert 5 < np.flatnonzero(grey).mean() < 34
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["1", "2"]


def test_a_background_that_is_no_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"background 'c' is none of the labels: \['a', 'b'\]"):
        plot_embedding(np.eye(2), ["a", "b"], background="c")


def drawing_order(seed: int) -> list[int]:
    axes = Figure().subplots()
    coords = np.stack([np.arange(40), np.zeros(40)], axis=1)
    plot_embedding(coords, np.repeat(["a", "b"], 20), ax=axes, seed=seed)
    return axes.collections[0].get_offsets()[:, 0].tolist()


def test_drawing_order_is_shuffled_by_the_seed() -> None:
    assert drawing_order(0) == drawing_order(0) != drawing_order(1)
    assert drawing_order(0) != sorted(drawing_order(0))


def test_categorical_order_is_kept_and_unused_categories_are_not(ax: Axes) -> None:
    labels = pd.Categorical(["low", "high"], categories=["low", "none", "high"])
    plot_embedding(np.eye(2), labels, ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["low", "high"]


def test_missing_labels_are_grey(ax: Axes) -> None:
    plot_embedding(np.array([[0, 0], [5, 5]]), ["a", None], ax=ax)
    points = ax.collections[0]
    grey = points.get_facecolor()[points.get_offsets()[:, 0] == 5][0]
    assert to_hex(grey) == "#bbbbbb"
    assert ax.get_legend().get_texts()[-1].get_text() == "not labelled"


def test_every_one_of_many_categories_has_its_colour_and_shape(ax: Axes) -> None:
    coords = np.stack([np.arange(60), np.zeros(60)], axis=1)
    labels = [f"{i % 30:02}" for i in range(60)]
    plot_embedding(coords, labels, ax=ax)
    handles = ax.get_legend().legend_handles
    assert len({handle.get_color() for handle in handles}) == 30
    assert len({handle.get_marker() for handle in handles}) == 3
    (points,) = ax.collections
    for (x, _), color, path in zip(
        points.get_offsets(), points.get_facecolor(), points.get_paths(), strict=True
    ):
        handle = handles[int(labels[int(x)])]
        marker = MarkerStyle(handle.get_marker())
        expected = marker.get_path().transformed(marker.get_transform())
        np.testing.assert_array_equal(path.vertices, expected.vertices)
        assert to_hex(color) == handle.get_color().lower()


@pytest.mark.parametrize("n", [2, 26, 60, 102])
def test_a_legend_of_many_categories_leaves_room_for_the_cells(n: int) -> None:
    labels = [f"GENE{i}" for i in range(n)]
    axes = plot_embedding(np.random.default_rng(0).normal(size=(n, 2)), labels)
    axes.figure.draw_without_rendering()
    width, height = axes.get_window_extent().size
    assert width > 0.8 * height
    legend, figure = axes.get_legend().get_window_extent(), axes.figure.bbox
    assert figure.x0 <= legend.x0 < legend.x1 <= figure.x1
    assert figure.y0 <= legend.y0 < legend.y1 <= figure.y1


def test_embedding_refuses_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"coords must be \[cells, 2\], not \(4, 3\)"):
        plot_embedding(np.zeros((4, 3)), ["a"] * 4)
    with pytest.raises(ValueError, match="labels has 3 values for 4 cells"):
        plot_embedding(np.zeros((4, 2)), ["a"] * 3)


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


# Machado, Oliveira and Fernandes (2009): protan-, deuter- and tritanopia, on linear RGB.
BLINDNESS = np.array(
    [
        np.eye(3),
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    ]
)
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def cielab(color: str) -> np.ndarray:
    """CIELAB coordinates under each kind of vision [kinds, 3]."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(BLINDNESS @ linear, 0, 1) @ XYZ.T / XYZ.sum(axis=1)
    f = np.where(seen > 0.008856, np.cbrt(seen), 7.787 * seen + 16 / 116)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("palette", [(*FEW, GREY), MANY], ids=["few", "many"])
def test_colours_stay_apart_with_colour_blindness(palette: tuple[str, ...]) -> None:
    lab = np.array([cielab(color) for color in palette])
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1).min(axis=-1)
    # A difference of 2 to 3 is just noticeable side by side.
    assert distance[~np.eye(len(palette), dtype=bool)].min() > 10


@pytest.mark.parametrize(("n", "least"), [(12, 20), (26, 20), (28, 15), (102, 8)])
def test_generated_colours_stay_apart_from_each_other_and_from_grey(n: int, least: float) -> None:
    colors = category_colors(n)
    assert len(colors) == n
    assert colors == category_colors(102)[:n]
    lab = np.array([cielab(color)[0] for color in (*colors, GREY, "#FFFFFF")])
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    assert distance[~np.eye(n + 2, dtype=bool)].min() > least


@pytest.mark.parametrize("n", [0, 1, len(FEW), len(FEW) + 1, len(MANY)])
def test_few_categories_have_colours_chosen_for_colour_blindness(n: int) -> None:
    assert category_colors(n) == (FEW if n <= len(FEW) else MANY)[:n]


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
