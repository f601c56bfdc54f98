"""Splits and mini-batches: which cells are trained on, and which are held out."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from training_helpers import column, make_adata, make_model, train

from pyro_contrastive import (
    CellBatch,
    ContrastiveModel,
    ContrastiveVI,
)
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.training.splits import (
    PairedBatches,
    Population,
    evaluation_batches,
    split_populations,
)


@pytest.fixture
def batches_seen(monkeypatch):
    """Record the indices of the cells of every mini-batch, by whether the module was training."""
    seen: dict[bool, list[np.ndarray]] = {True: [], False: []}
    model: list[ContrastiveVI] = []
    original = CellData.cells

    def cells(self: CellData, indices: np.ndarray, *arguments: Any, **options: Any) -> CellBatch:
        seen[model[0].module.training].append(indices)
        return original(self, indices, *arguments, **options)

    monkeypatch.setattr(CellData, "cells", cells)

    def watch(watched: ContrastiveVI) -> dict[bool, list[np.ndarray]]:
        model.append(watched)
        return seen

    return watch


@pytest.mark.parametrize(
    ("sizes", "n_train", "n_validation"),
    [
        ({}, 90, 10),
        ({"train_size": 0.55, "validation_size": 0.2}, 55, 20),
        ({"train_size": 0.7}, 70, 30),
        ({"train_size": 1.0}, 100, 0),
        ({"validation_size": 0.3}, 70, 30),
        ({"train_size": 0.5, "validation_size": 0.2}, 50, 20),
        ({"train_size": 0.333, "validation_size": 0.333}, 34, 33),
    ],
)
def test_sizes_of_the_split(sizes, n_train, n_validation):
    background, target = np.arange(100), np.arange(100, 300)
    split = split_populations(background, target, rng=np.random.default_rng(0), **sizes)
    assert (len(split.train.background), len(split.validation.background)) == (
        n_train,
        n_validation,
    )
    for cells in ("background", "target"):
        parts = [getattr(p, cells) for p in (split.train, split.validation, split.test)]
        given = background if cells == "background" else target
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), given)


def test_unshuffled_split_is_in_order_as_in_scvi_tools():
    split = split_populations(
        np.arange(10),
        np.arange(10, 30),
        train_size=0.6,
        validation_size=0.2,
        shuffle=False,
        rng=np.random.default_rng(0),
    )
    assert split.validation.background.tolist() == [0, 1]
    assert split.train.background.tolist() == [2, 3, 4, 5, 6, 7]
    assert split.test.background.tolist() == [8, 9]
    assert split.train.target.tolist() == list(range(14, 26))


@pytest.mark.parametrize(
    "sizes",
    [
        {"train_size": 0.0},
        {"train_size": 1.1},
        {"train_size": -0.5},
        {"train_size": float("nan")},
        {"validation_size": 1.0},
        {"validation_size": -0.1},
        {"train_size": 0.8, "validation_size": 0.3},
    ],
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=r"(train|validation)_size must be "):
        train(make_model(), **sizes)


def test_each_population_is_split_on_its_own_and_held_out_cells_never_train(batches_seen):
    model = make_model(make_adata(20, 60))
    seen = batches_seen(model)
    train(model, 3, train_size=0.75, batch_size=16)
    trained, held_out = (set(np.concatenate(seen[key]).tolist()) for key in (True, False))
    held_out -= trained  # the checks before training run on training cells
    assert len(trained & set(range(20))) == 15
    assert len(trained & set(range(20, 80))) == 45
    assert len(held_out) == 20


@pytest.mark.parametrize("as_mask", [False, True])
def test_given_indices_are_the_populations(batches_seen, as_mask):
    adata = make_adata()
    ContrastiveVI.setup_anndata(adata)  # no condition, which the indices would contradict
    model = make_model(adata)
    seen = batches_seen(model)
    background, target = [0, 40, 41], [1, 2, 30, 45]
    if as_mask:
        masks = np.zeros((2, 50), dtype=bool)
        masks[0, background] = masks[1, target] = True
        train(model, 1, background_indices=masks[0], target_indices=masks[1], train_size=1.0)
    else:
        train(model, 1, background_indices=background, target_indices=target, train_size=1.0)
    assert set(np.concatenate(seen[True]).tolist()) == {*background, *target}


def test_given_indices_set_the_condition(monkeypatch):
    seen = []
    original = ContrastiveModel.forward

    def forward(self: ContrastiveModel, batch: CellBatch) -> Tensor:
        seen.append((int((~batch.is_target).sum()), int(batch.is_target.sum())))
        return original(self, batch)

    monkeypatch.setattr(ContrastiveModel, "forward", forward)
    adata = make_adata()
    ContrastiveVI.setup_anndata(adata)  # no condition
    train(make_model(adata), 1, background_indices=[40, 41], target_indices=[0, 1, 2], train_size=1)
    assert set(seen) == {(2, 3)}


def test_one_population_alone_or_overlapping_ones_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match="Give both"):
        train(model, background_indices=[0, 1])
    with pytest.raises(ValueError, match="both background and target"):
        train(model, background_indices=[0, 1], target_indices=[1, 2])
    assert not model.is_trained


# Mini-batches


@pytest.mark.parametrize(
    ("n_background", "n_target", "batch_size"),
    [(3, 100, 16), (100, 3, 16), (37, 50, 128), (50, 50, 7), (41, 50, 10), (1, 1, 128)],
)
def test_every_cell_of_both_populations_trains(n_background, n_target, batch_size):
    n_epochs, n_larger = 7, max(n_background, n_target)
    cells = Population(np.arange(n_background), np.arange(1000, 1000 + n_target))
    batches = PairedBatches(cells, batch_size, np.random.default_rng(0))
    assert batches.steps_per_epoch == -(-n_larger // batch_size)
    counts: Counter[int] = Counter()
    smaller_in_order: list[int] = []
    orders: list[list[int]] = []  # of the larger population, in each epoch
    for _ in range(n_epochs):
        epoch = list(batches.epoch())
        assert len(epoch) == batches.steps_per_epoch
        of_larger = []
        for step in epoch:
            parts = step[step < 1000], step[step >= 1000]
            assert all(1 <= len(part) <= batch_size for part in parts)
            larger, smaller = parts if n_background >= n_target else parts[::-1]
            of_larger += larger.tolist()
            smaller_in_order += smaller.tolist()
            counts.update(step.tolist())
        assert len(of_larger) == len(set(of_larger)) == n_larger  # each exactly once an epoch
        orders.append(of_larger)
    times = [counts[i] for i in (*cells.background, *cells.target)]
    small_times = times[:n_background] if n_background < n_target else times[n_background:]
    assert max(small_times) - min(small_times) <= 1
    n_small = min(n_background, n_target)
    cycles = [smaller_in_order[i : i + n_small] for i in range(0, len(smaller_in_order), n_small)]
    assert all(len(set(cycle)) == len(cycle) for cycle in cycles)
    if n_small > 5:
        assert cycles[0] != cycles[1]  # reshuffled
    if n_larger > 5:
        assert all(orders[i] != orders[j] for i in range(n_epochs) for j in range(i))
        assert sorted(orders[0]) != orders[0]  # nor is the first epoch that of the data
    sizes = [len(step) for step in epoch]
    assert max(sizes) - min(sizes) <= 2  # no tiny last step


def test_evaluation_sees_every_cell_once():
    cells = Population(np.arange(3), np.arange(10, 45))
    seen = np.concatenate(list(evaluation_batches(cells, 8)))
    np.testing.assert_array_equal(np.sort(seen), np.r_[0:3, 10:45])


@pytest.mark.parametrize(("n_background", "n_target"), [(3, 35), (35, 3), (20, 20), (0, 9), (9, 0)])
@pytest.mark.parametrize("batch_size", [1, 8, 35, 100])
def test_batches_of_evaluation_are_as_few_as_fit_and_even(n_background, n_target, batch_size):
    cells = Population(np.arange(n_background), np.arange(100, 100 + n_target))
    batches = list(evaluation_batches(cells, batch_size))
    # As many as the larger population needs, each within one cell of its share of both.
    assert len(batches) == math.ceil(max(n_background, n_target) / batch_size)
    for batch in batches:
        for n, size in ((n_background, (batch < 100).sum()), (n_target, (batch >= 100).sum())):
            assert n // len(batches) <= size <= min(batch_size, math.ceil(n / len(batches)))


@pytest.mark.filterwarnings("ignore:There (is|are) only")
@pytest.mark.parametrize(("n_background", "n_target"), [(3, 100), (100, 3)])
@pytest.mark.parametrize("batch_size", [128, 16])
def test_very_unequal_populations_train(n_background, n_target, batch_size):
    model = make_model(make_adata(n_background, n_target), wasserstein_penalty=1)
    train(model, 2, batch_size=batch_size)
    assert np.isfinite(column(model, "elbo_train")).all()
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.filterwarnings("ignore:There (is|are) only")
def test_one_cell_of_each_population_trains():
    model = make_model(make_adata(1, 1))
    train(model, 3)
    assert np.isfinite(column(model, "elbo_train")).all()


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        train(make_model(), batch_size=0)
