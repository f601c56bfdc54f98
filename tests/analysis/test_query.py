"""A query: which cells it is about, in what portions they are read, and that it does not change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import N_GENES, make_vae

from pyro_contrastive.analysis.query import Decoding, Query
from pyro_contrastive.data import CellData


@pytest.fixture
def query() -> Query:
    counts = np.random.default_rng(0).poisson(3.0, (6, N_GENES)).astype(np.float32)
    data = CellData(counts, condition=np.arange(6) % 2)
    return Query(make_vae(), data, np.array([4, 0, 4, 1]), obs_names=pd.Index(list("abcdef")))


def test_cells_come_in_the_order_asked_for_and_may_repeat(query: Query) -> None:
    portions = list(dataclasses.replace(query, batch_size=3).minibatches())
    assert [len(batch) for batch in portions] == [3, 1]
    counts = torch.cat([batch.x for batch in portions]).numpy()
    np.testing.assert_array_equal(counts, query.data.counts[[4, 0, 4, 1]])


def test_names_follow_the_cells(query: Query) -> None:
    assert query.names.tolist() == ["e", "a", "e", "b"]
    assert query.of(np.array([2])).names.tolist() == ["c"]
    nameless = dataclasses.replace(query, obs_names=None)
    assert nameless.names.tolist() == [4, 0, 4, 1]


def test_genes_are_positions_in_the_order_of_the_model(query: Query) -> None:
    assert query.genes.tolist() == list(range(N_GENES))
    some = dataclasses.replace(query, decoding=Decoding(genes=np.array([1, 7])))
    assert some.genes.tolist() == [1, 7]


@pytest.mark.parametrize(
    ("n_draws", "dense", "expected"),
    [(1, True, 1024), (1, False, 2048), (8, True, 1024), (16, True, 512), (9000, True, 1)],
)
def test_portions_are_smaller_the_more_draws_each_cell_has(
    query: Query, n_draws: int, dense: bool, expected: int
) -> None:
    many = query.of(np.zeros(2100, dtype=np.int64))
    first = next(iter(many.minibatches(n_draws, dense=dense)))
    assert len(first) == expected


def test_a_query_does_not_change(query: Query) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        query.batch_size = 3  # type: ignore[misc]
    other = query.of(np.array([1]))
    assert (len(query), len(other)) == (4, 1)
    assert other.data is query.data
