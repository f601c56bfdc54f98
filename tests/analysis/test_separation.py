"""Separation scores against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyro_contrastive.analysis import mixing
from pyro_contrastive.analysis.score_readings import READINGS, Reading
from pyro_contrastive.analysis.separation import label_mixing, score_labels, score_latents


def score(table: pd.DataFrame, latent: str, of: str, measure: str) -> float:
    row = table[(table.latent == latent) & (table.of == of) & (table.measure == measure)]
    return row["value"].item()


def line(*positions: float) -> np.ndarray:
    return np.array(positions, dtype=float)[:, None]


def circle(n: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_entropy_of_six_cells_by_hand() -> None:
    # Nearest two of each cell: (t, c), (c, c), (t, c), (t, c), (t, c), (c, t): five of six
    # entropies are ln 2, one is 0, and overall it is ln 2.
    x = line(0, 1, 2.5, 10, 20, 31)
    table = score_latents(x, x, list("ctcctt"), background_category="c", n_neighbors=2)
    assert score(table, "background", "condition", "mixing") == pytest.approx(5 / 6, abs=1e-12)


def test_labels_of_unequal_number_are_compared_with_their_own_entropy() -> None:
    # Nearest two of each cell: (t, t), (t, c), (t, c), (t, t).
    overall = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    expected = (0 + np.log(2) + np.log(2) + 0) / 4 / overall
    found = label_mixing(line(0, 1, 1.5, 10), list("cttt"), n_neighbors=2)
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_larger_side_is_not_a_group_of_its_own() -> None:
    rng = np.random.default_rng(0)
    condition = np.repeat(["c", "t"], [200, 1800])
    z = rng.normal(size=(2000, 10))
    s = z + 10 * (condition == "t")[:, None]
    table = score_latents(z, s, condition, background_category="c")
    assert score(table, "background", "condition", "mixing") == pytest.approx(0.985, abs=0.01)
    assert abs(score(table, "background", "condition", "silhouette")) < 0.005
    assert score(table, "salient", "condition", "mixing") == 0


def test_mixing_does_not_exceed_one_however_unequal_the_sides() -> None:
    # All 40 background cells lie among targets, of which most lie elsewhere.
    rng = np.random.default_rng(0)
    condition = np.repeat(["c", "t"], [40, 400])
    x = rng.normal(size=(440, 3))
    x[100:] += 3 * rng.normal(size=(340, 3))
    table = score_latents(x, x, condition, background_category="c")
    assert label_mixing(x, condition) > 1
    assert score(table, "background", "condition", "mixing") <= 1


def test_more_neighbours_than_a_side_has_cells_are_not_asked_for() -> None:
    x = line(*range(5), *range(100, 160))
    condition = np.repeat(["c", "t"], [5, 60])
    table = score_latents(x, x, condition, background_category="c")
    assert score(table, "salient", "condition", "mixing") == 0


def test_perfect_mixing_is_one() -> None:
    # Around the circle c c t t c c t t ...: either side of every cell is one c and one t.
    table = score_latents(
        circle(16), circle(16), list("cctt" * 4), background_category="c", n_neighbors=2
    )
    assert score(table, "background", "condition", "mixing") == pytest.approx(1.0, abs=1e-12)


def test_perfect_separation_by_hand() -> None:
    x = line(0, 1, 10, 11)
    table = score_latents(x, x, list("cctt"), background_category="c", n_neighbors=1)
    assert score(table, "salient", "condition", "mixing") == 0
    # Own group 1 away; the other at 10.5 on average from the outer cells, 9.5 from the inner ones.
    expected = 1 - (1 / 10.5 + 1 / 9.5) / 2
    assert score(table, "salient", "condition", "silhouette") == pytest.approx(expected, abs=1e-12)


def test_a_cell_is_not_its_own_neighbour_among_duplicates() -> None:
    # Three others each: one of the own class and two of the other.
    h = -(1 / 3 * np.log(1 / 3) + 2 / 3 * np.log(2 / 3)) / np.log(2)
    found = label_mixing(line(0, 0, 0, 0), list("cctt"), n_neighbors=3)
    assert found == pytest.approx(h, abs=1e-12)


def test_labels_in_separate_blobs_are_recovered_and_shuffled_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1, 2], 40)
    condition = np.repeat(["c", "t"], 60)
    z = np.eye(3)[labels] * 100 + rng.normal(size=(120, 3))
    kwargs = {"background_category": "c", "n_neighbors": 10}
    good = score_latents(z, z, condition, labels=labels, **kwargs)
    poor = score_latents(z, z, condition, labels=rng.permutation(labels), **kwargs)
    for measure in ("NMI", "ARI"):
        assert score(good, "background", "labels", measure) == pytest.approx(1)
        assert score(poor, "background", "labels", measure) < 0.1
    assert score(good, "background", "labels", "silhouette") > 0.9


def test_leakage_looks_at_target_cells_only() -> None:
    # Target cells: two clumps, each with both labels in equal parts, so NMI is 0. Background cells
    # lie exactly by label and would raise it.
    labels = np.array(list("abab" * 10 + "ab" * 20))
    target_clump = np.repeat([0.0, 100.0, 0.0, 100.0], 10)
    # Clumps alternate in blocks of ten, labels cell by cell: independent.
    background_position = np.where(labels[40:] == "a", 0.0, 100.0)
    jitter = np.random.default_rng(0).normal(scale=0.01, size=80)
    s = (np.concatenate([target_clump, background_position]) + jitter)[:, None]
    condition = ["t"] * 40 + ["c"] * 40
    table = score_latents(s, s, condition, labels=labels, background_category="c", n_neighbors=5)
    assert score(table, "salient", "labels", "NMI") == pytest.approx(0, abs=1e-12)
    assert score(table, "background", "labels", "NMI") > 0.1


def test_leakage_is_left_out_where_targets_have_one_label() -> None:
    x = line(*range(12))
    condition = ["c"] * 6 + ["t"] * 6
    labels = ["a", "b"] * 3 + ["a"] * 6
    table = score_latents(x, x, condition, labels=labels, background_category="c", n_neighbors=2)
    assert len(table) == 7
    assert not ((table.latent == "salient") & (table.of == "labels")).any()


def test_several_treatments_count_as_one_target() -> None:
    x = np.random.default_rng(1).normal(size=(60, 2))
    several = np.tile(["control", "drug a", "drug b"], 20)
    one = np.where(several == "control", "control", "drug")
    kwargs = {"background_category": "control", "n_neighbors": 5}
    pd.testing.assert_frame_equal(
        score_latents(x, x, several, **kwargs), score_latents(x, x, one, **kwargs)
    )


def test_rows_know_which_side_is_best() -> None:
    x = np.random.default_rng(1).normal(size=(60, 2))
    table = score_latents(
        x, x, ["c", "t"] * 30, labels=["a", "a", "b"] * 20, background_category="c", n_neighbors=5
    )
    assert list(table) == ["latent", "of", "measure", "value", "chance", "best", "reading"]
    best = table.set_index(["latent", "of", "measure"])["best"].to_dict()
    assert best == {
        ("background", "condition", "mixing"): "high",
        ("background", "condition", "silhouette"): "low",
        ("salient", "condition", "mixing"): "low",
        ("salient", "condition", "silhouette"): "high",
        ("background", "labels", "NMI"): "high",
        ("background", "labels", "ARI"): "high",
        ("background", "labels", "silhouette"): "high",
        ("salient", "labels", "NMI"): "low",
    }


def test_few_target_cells_among_many_do_not_vanish_from_the_sample() -> None:
    # 3,200 cells and one of the second label: a sample of 3,000 without it has no silhouette.
    x = np.random.default_rng(0).normal(size=(3200, 1))
    labels = ["t"] + ["c"] * 3199
    first, second = (score_labels(x, labels, n_neighbors=5, seed=seed) for seed in (0, 1))
    assert first["silhouette"] == second["silhouette"]


@pytest.mark.parametrize("reading", READINGS.values(), ids=map(str, READINGS))
def test_readings_go_from_good_to_poor(reading: Reading) -> None:
    best, worst = (1.0, -1.0) if reading.best == "high" else (-1.0, 1.0)
    assert reading(best) == reading(reading.good) == reading.sentences[0]
    assert reading(reading.fair) == reading.sentences[1]
    assert reading(worst) == reading.sentences[2]
    assert len(set(reading.sentences)) == 3


X = np.random.default_rng(0).normal(size=(10, 2))
CONDITION = ["c", "t"] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"salient": X[:9]}, "background has 10 cells and salient has 9"),
        ({"condition": CONDITION[:9]}, "condition has 9 values for 10 cells"),
        ({"labels": ["a", "b"]}, "labels has 2 values for 10 cells"),
        ({"condition": ["c"] * 10}, "condition has one value only, 'c'"),
        ({"condition": ["c"] * 9 + ["t"]}, "9 background and 1 target cells; scoring needs"),
        ({"labels": ["a"] * 10}, "labels has one value only, 'a'"),
        ({"labels": ["a", None] * 5}, "labels is missing for 5 cells"),
        ({"background_category": "b"}, "no cell has condition 'b'; there are 'c', 't'"),
        ({"n_neighbors": 10}, "n_neighbors=10 must be at least 1 and below 10"),
        ({"n_neighbors": 0}, "n_neighbors=0 must be"),
        ({"background": X[:, 0]}, r"background must be a matrix .* \(10,\)"),
        ({"salient": np.full((10, 2), np.nan)}, "salient holds values that are not finite"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    call = {"background": X, "salient": X, "condition": CONDITION, "background_category": "c"}
    call = call | {"n_neighbors": 3} | change
    with pytest.raises(ValueError, match=message):
        score_latents(**call)


def test_neighbours_of_some_cells_are_those_of_all(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(3_000, 3))
    labels = np.where(latent[:, 0] + rng.normal(size=3_000) > 0, "a", "b")
    whole = label_mixing(latent, labels)
    everyone = mixing._nearest_others(latent, 7)
    monkeypatch.setattr(mixing, "MOST_CELLS", 1_500)
    assert abs(label_mixing(latent, labels) - whole) < 0.02
    some = mixing._nearest_others(latent, 7)
    assert some.shape == (1_500, 7)
    assert {tuple(row) for row in some} <= {tuple(row) for row in everyone}
    repeated = np.repeat(latent[:20], 150, axis=0)  # more duplicates than neighbours
    assert mixing._nearest_others(repeated, 7).shape == (1_500, 7)
