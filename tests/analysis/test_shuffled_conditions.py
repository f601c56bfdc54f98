"""Shuffled conditions keep what they must: the sizes of strata, and donors as the unit."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_contrastive.analysis.shuffled_conditions import shuffled_conditions

ONE = np.zeros(400, dtype=np.int64)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_shuffle_is_a_fair_draw_within_strata() -> None:
    condition = rng(1).integers(3, size=400)
    strata = np.arange(400) % 4
    found = shuffled_conditions(condition, strata, None, rng())
    for stratum in range(4):
        inside = strata == stratum
        assert np.bincount(found[inside]).tolist() == np.bincount(condition[inside]).tolist()
    assert abs(np.corrcoef(found, condition)[0, 1]) < 0.15
    np.testing.assert_array_equal(found, shuffled_conditions(condition, strata, None, rng()))
    assert (found != shuffled_conditions(condition, strata, None, rng(2))).any()


def test_cells_of_a_donor_with_both_conditions_are_shuffled_among_themselves() -> None:
    donors = np.repeat(np.arange(4), 100)
    condition = (rng(1).random(400) < np.repeat([0.2, 0.4, 0.6, 0.8], 100)).astype(np.int64)
    found = shuffled_conditions(condition, ONE, donors, rng())
    for donor in range(4):
        own = donors == donor
        assert found[own].sum() == condition[own].sum()
        assert (found[own] != condition[own]).any()


def test_donors_with_one_condition_exchange_theirs() -> None:
    """Each donor keeps one condition, as many have each, and all assignments to other groups occur.

    The real groups with exchanged names, (1, 1, 0, 0), would show all of the response.
    """
    donors = np.repeat([3, 5, 7, 9], 100)
    condition = np.repeat([0, 0, 1, 1], 100)
    seen = set()
    for seed in range(60):
        found = shuffled_conditions(condition, ONE, donors, rng(seed))
        by_donor = found.reshape(4, 100)
        assert (by_donor == by_donor[:, :1]).all()
        assert by_donor[:, 0].sum() == 2
        seen.add(tuple(by_donor[:, 0]))
    assert seen == {(0, 1, 0, 1), (0, 1, 1, 0), (1, 0, 0, 1), (1, 0, 1, 0)}


def test_paired_and_unpaired_donors_together() -> None:
    donors = np.repeat([0, 1, 2], [200, 100, 100])
    condition = np.concatenate([np.arange(200) % 2, np.zeros(100), np.ones(100)]).astype(np.int64)
    found = shuffled_conditions(condition, ONE, donors, rng(3))
    assert found[:200].sum() == 100
    assert {len(set(found[200:300])), len(set(found[300:]))} == {1}
    assert found[200] + found[300] == 1


def test_what_cannot_be_shuffled_is_refused() -> None:
    condition = np.repeat([0, 1], 200)
    with pytest.raises(ValueError, match="cannot be shuffled"):
        shuffled_conditions(condition, condition, None, rng())
    with pytest.raises(ValueError, match="within="):
        shuffled_conditions(np.zeros(400, dtype=np.int64), ONE, None, rng())
    with pytest.raises(ValueError, match="so few donors that any exchange leaves the same groups"):
        shuffled_conditions(np.repeat([0, 1], 200), ONE, np.repeat([0, 1], 200), rng())
