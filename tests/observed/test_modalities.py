"""What a batch carries, and what a model observes, is one entry for each modality."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import make_batch, make_vae
from pyro import poutine
from scipy.sparse import csc_matrix, csr_matrix

from pyro_contrastive import CellBatch
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.likelihoods.modality import Modality
from pyro_contrastive.model import ContrastiveModel
from pyro_contrastive.observed.observation import Observation
from pyro_contrastive.observed.source import Observed


class WithProteins(ContrastiveModel):
    @property
    def modalities(self) -> tuple[Modality, ...]:
        return (*super().modalities, Modality("protein", self.likelihood, 2))

    def protein_dist(self, heads, library, batch):
        return dist.Poisson(library.expand(-1, 2)).to_event(1)


def test_a_model_with_a_second_modality_observes_both() -> None:
    vae = make_vae()
    vae.model.__class__ = WithProteins
    cells = make_batch()
    proteins = torch.arange(2.0 * len(cells)).reshape(-1, 2)
    observed = {**cells.observed, "protein": Observation(proteins)}
    batch = dataclasses.replace(cells, observed=observed)
    trace = poutine.trace(vae.model).get_trace(batch)
    for site, value in {"x": cells.x, "protein": proteins}.items():
        assert trace.nodes[site]["is_observed"]
        assert trace.nodes[site]["value"] is value
    some = batch.take(torch.tensor([2, 0]))
    assert torch.equal(some.observed["protein"].values, proteins[[2, 0]])
    joined = CellBatch.cat([batch, some])
    assert torch.equal(joined.observed["protein"].values[-2:], proteins[[2, 0]])
    assert batch.to("meta").observed["protein"].values.device.type == "meta"
    assert batch.tensors()["protein.values"] is proteins


def test_counts_can_be_replaced_and_left_out() -> None:
    batch = CellData(csr_matrix(np.eye(4, 9, dtype=np.float32))).cells(np.arange(4))
    assert batch.rows is not None
    other = torch.ones(4, 9)
    assert dataclasses.replace(batch, x=other, rows=None).x is other
    empty = dataclasses.replace(batch, x=None, rows=None)
    assert (empty.x, empty.rows) == (None, None)
    assert batch.observing(None).x is None
    for same in (dataclasses.replace(batch), dataclasses.replace(batch, library=other[:, :1])):
        assert same.x is batch.x
        assert same.rows is batch.rows
    assert torch.equal(empty.library, torch.ones(4, 1)), "the library size stays what it was"
    with pytest.raises(ValueError, match=r"`protein` has shape \[3, 2\].*with 4 cells"):
        dataclasses.replace(batch, observed={"protein": Observation(torch.zeros(3, 2))})


def test_counts_kept_elsewhere_need_two_members() -> None:
    table = csr_matrix(np.random.default_rng(0).poisson(0.2, (20, 9)).astype(np.float32))

    class OnDisk(Observed):
        @property
        def shape(self) -> tuple[int, int]:
            return 20, 9

        def rows(self, cells=None):
            return table if cells is None else table[cells]

    here, there = CellData(table), CellData(OnDisk())
    assert len(there) == 20
    np.testing.assert_array_equal(there.totals(), np.asarray(table.sum(1)).ravel())
    for dense in (True, False):
        one, other = (d.cells(np.array([4, 1]), dense=dense).tensors() for d in (here, there))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    summaries = [d.gene_summary(np.arange(20)) for d in (here, there)]
    np.testing.assert_array_equal(summaries[0].variance, summaries[1].variance)


def test_modalities_may_be_given_as_tensors_and_are_never_dropped() -> None:
    protein = torch.arange(4.0).reshape(2, 2)
    plain = CellBatch(torch.tensor([0, 1]), torch.ones(2, 3))
    both = dataclasses.replace(plain, observed=dict(plain.observed) | {"protein": protein})
    assert both.observed["protein"].values is protein
    joined = CellBatch.cat(batch for batch in (both, both))
    assert torch.equal(joined.observed["protein"].values, torch.cat([protein, protein]))
    for batches in ([plain, both], [both, plain]):
        with pytest.raises(ValueError, match=r"\['protein'\] are not observed in all batches"):
            CellBatch.cat(batches)
    with pytest.raises(dataclasses.FrozenInstanceError):
        both.x = None


def test_rows_by_columns_are_those_of_the_same_cells() -> None:
    counts = np.random.default_rng(0).poisson(0.1, (6, 6)).astype(np.float32)
    for dense in (True, False):
        found = Observation.of(csc_matrix(counts), "cpu", torch.float32, dense=dense)
        product = found.rows.linear(torch.eye(6))
        np.testing.assert_array_equal(product.numpy(), counts)
