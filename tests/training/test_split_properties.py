"""Splits and mini-batches of any sizes: what holds for all of them."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_contrastive.training.splits import (
    PairedBatches,
    Population,
    SplitSettings,
    evaluation_batches,
    external_split,
    split_cells,
    split_populations,
)

SIZES = st.integers(1, 60)
# Hundredths, whose share of a number of cells is computed exactly below.
SHARES = st.integers(0, 100)


def cells_of(n_background: int, n_target: int) -> Population:
    """Positions of cells of both populations, which take turns as long as they last."""
    every = np.arange(n_background + n_target)
    is_background = np.zeros(len(every), dtype=bool)
    is_background[np.linspace(0, len(every) - 1, n_background).astype(int)] = True
    return Population(every[is_background], every[~is_background])


def counted(*parts: np.ndarray) -> Counter[int]:
    return Counter(np.concatenate(parts).tolist())


@settings(max_examples=150, deadline=None)
@given(SIZES, SIZES, SHARES, SHARES, st.booleans(), st.integers(0, 2**32))
def test_every_cell_is_in_one_part_and_parts_have_their_sizes(
    n_background, n_target, train, validation, shuffle, seed
) -> None:
    cells = cells_of(n_background, n_target)
    validation = min(validation, 100 - train)

    def split():
        return split_populations(
            cells.background,
            cells.target,
            train_size=train / 100,
            validation_size=validation / 100,
            shuffle=shuffle,
            rng=np.random.default_rng(seed),
        )

    if train == 0:
        with pytest.raises(ValueError, match="train_size must be above 0"):
            split()
        return
    found = split()
    for name in ("background", "target"):
        own = getattr(cells, name)
        parts = [getattr(part, name) for part in (found.train, found.validation, found.test)]
        assert counted(*parts) == counted(own)
        n_train = math.ceil(Fraction(train * len(own), 100))
        n_validation = math.floor(Fraction(validation * len(own), 100))
        # Rounding up and down may ask for one cell more than there are.
        assert len(parts[0]) == min(n_train, len(own) - n_validation)
        assert len(parts[1]) == n_validation
        if not shuffle:
            assert np.concatenate([parts[1], parts[0], parts[2]]).tolist() == own.tolist()
    again = split()
    for part, same in ((found.train, again.train), (found.validation, again.validation)):
        np.testing.assert_array_equal(part.background, same.background)
        np.testing.assert_array_equal(part.target, same.target)


@settings(max_examples=100, deadline=None)
@given(SIZES, SIZES, st.integers(0, 2**32), st.booleans())
def test_a_split_that_is_given_is_taken_as_given(n_background, n_target, seed, masks) -> None:
    cells = cells_of(n_background, n_target)
    rng = np.random.default_rng(seed)
    part_of = rng.integers(0, 4, n_background + n_target)  # 3: in no part
    part_of[[cells.background[0], cells.target[0]]] = 0
    given_parts = [
        part_of == i if masks else rng.permutation(np.flatnonzero(part_of == i)) for i in range(3)
    ]
    found = split_cells(
        cells.background,
        cells.target,
        SplitSettings(datasplitter_kwargs={"external_indexing": given_parts}),
        pd.Index([f"cell {i}" for i in range(len(part_of))]),
        rng,
    )
    for i, part in enumerate((found.train, found.validation, found.test)):
        wanted = set(np.flatnonzero(part_of == i).tolist())
        assert set(part.background.tolist()) == wanted & set(cells.background.tolist())
        assert set(part.target.tolist()) == wanted & set(cells.target.tolist())
        assert len(part) == len(wanted)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(0, 2**32))
def test_a_cell_named_twice_or_of_no_population_is_refused(n_background, n_target, seed) -> None:
    cells = cells_of(n_background, n_target)
    every = np.random.default_rng(seed).permutation(len(cells))
    with pytest.raises(ValueError, match="twice"):
        external_split(cells.background, cells.target, external_indexing=[every, every[:1]])
    with pytest.raises(ValueError, match="1 cells of neither population"):
        external_split(cells.background, cells.target, external_indexing=[every, [len(every) + 5]])


@settings(max_examples=150, deadline=None)
@given(SIZES, SIZES, st.integers(1, 70), st.integers(0, 2**32))
def test_an_epoch_is_one_pass_over_the_larger_population(
    n_background, n_target, batch_size, seed
) -> None:
    cells = cells_of(n_background, n_target)
    batches = PairedBatches(cells, batch_size, np.random.default_rng(seed))
    n_larger, n_smaller = max(n_background, n_target), min(n_background, n_target)
    larger = cells.background if n_background >= n_target else cells.target
    seen: Counter[int] = Counter()
    for _ in range(3):
        epoch = list(batches.epoch())
        assert len(epoch) == batches.steps_per_epoch == math.ceil(n_larger / batch_size)
        of_larger = [np.intersect1d(step, larger) for step in epoch]
        assert counted(*of_larger) == counted(larger)
        for step, own in zip(epoch, of_larger, strict=True):
            # As many of both, unless there are not as many of the smaller population.
            assert len(step) - len(own) == min(len(own), n_smaller)
            assert n_larger // len(epoch) <= len(own) <= batch_size
        seen += counted(*epoch)
    smaller = cells.target if n_background >= n_target else cells.background
    times = [seen[i] for i in smaller.tolist()]
    assert max(times) - min(times) <= 1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), SIZES, st.integers(1, 70))
def test_every_cell_is_evaluated_once(n_background, n_target, batch_size) -> None:
    cells = cells_of(n_background, n_target)
    batches = list(evaluation_batches(cells, batch_size))
    assert counted(*batches) == counted(cells.background, cells.target)
    for own in (cells.background, cells.target):
        sizes = [len(np.intersect1d(batch, own)) for batch in batches]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
