"""Maps of cells: every cell has the colour of its category, and categories can be told apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from pyro_contrastive.plotting import plot_embedding
from pyro_contrastive.plotting.palette import category_colors
from pyro_contrastive.plotting.style import FEW, GREY, MANY

pytestmark = pytest.mark.usefixtures("untouched_matplotlib")


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


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
    labels = np.array(["drug", None, "untreated", "heat", "zinc"] * 18, dtype=object)
    plot_embedding(coords, labels, background="untreated", ax=ax)
    beneath, above = ax.collections
    is_background = labels == "untreated"
    assert set(beneath.get_offsets()[:, 0]) == set(coords[is_background, 0])
    assert set(above.get_offsets()[:, 0]) == set(coords[~is_background, 0])
    assert beneath.get_zorder() < above.get_zorder()
    assert {to_hex(color) for color in beneath.get_facecolor()} == {GREY.lower()}
    drawn = {to_hex(c) for c in above.get_facecolor()}
    assert len(drawn) == 4
    assert GREY.lower() not in drawn
    legend = ax.get_legend()
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["untreated", "drug", "heat", "zinc", "not labelled"]
    shown = dict(zip(names, (h.get_color() for h in legend.legend_handles), strict=True))
    at = {
        x: to_hex(c) for (x, _), c in zip(above.get_offsets(), above.get_facecolor(), strict=True)
    }
    for x, label in zip(coords[:, 0], labels, strict=True):
        if label != "untreated":
            assert at[x] == shown[label or "not labelled"].lower()


def test_background_and_a_single_treatment_do_not_hide_each_other(ax: Axes) -> None:
    labels = pd.Categorical(np.tile([2, 1], 20), categories=[2, 1])
    plot_embedding(np.random.default_rng(0).normal(size=(40, 2)), labels, background=1, ax=ax)
    (points,) = ax.collections
    grey = [to_hex(color) == GREY.lower() for color in points.get_facecolor()]
    assert 5 < np.flatnonzero(grey).mean() < 34
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["1", "2"]


def test_a_background_that_is_no_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"background 'c' is not among the labels: \['a', 'b'\]"):
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
