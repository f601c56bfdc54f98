"""Runs on cells on disk that are continued from a checkpoint, and what belongs to another run."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from disk_helpers import AT_A_TIME, cells, read_in_pieces, write

from pyro_contrastive import CellBatch, ContrastiveVI, Prior
from pyro_contrastive.data import open_on_disk
from pyro_contrastive.saving import checkpoints
from pyro_contrastive.training.finite import NonFiniteLossError

RUN = {"max_epochs": 3, "batch_size": 6, "seed": 3, "checkpoint_every_n_epochs": 1}
RUN |= {"enable_progress_bar": False, "accelerator": "cpu"}
RUN |= {"plan_kwargs": {"record_steps": False}}  # of which each shape takes seconds


def make_model(adata: ad.AnnData, **parts: object) -> ContrastiveVI:
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    return ContrastiveVI(adata, n_hidden=8, n_background_latent=3, n_salient_latent=2, **parts)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the checkpoints after each epoch will be, with cells read a few at a time."""
    monkeypatch.setattr(checkpoints, "N_KEPT", 100)
    read_in_pieces(monkeypatch)
    return tmp_path / "run"


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(run, tmp_path, suffix):
    file = write(cells(), tmp_path / f"cells.{suffix}")
    whole = make_model(open_on_disk(file))
    whole.train(**RUN, checkpoint=run)
    shutil.copytree(run / "epoch_1", tmp_path / "first" / "epoch_1")
    torch.manual_seed(77)
    model = make_model(open_on_disk(file))  # with other weights
    model.train(**RUN, resume=tmp_path / "first")
    expected = whole.module.state_dict()
    for name, value in model.module.state_dict().items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert model._history.to_json() == whole._history.to_json()


def rewritten(adata: ad.AnnData, tmp_path: Path) -> ad.AnnData:
    """The same cells, backwards in the file and forwards in the AnnData."""
    file = write(adata[::-1].copy(), tmp_path / "backwards.h5ad")
    return open_on_disk(file)[::-1]


OTHERS = {
    "in memory": (lambda adata, _: adata.copy(), "place of the counts was 'disk' and is 'memory'"),
    "in another order": (rewritten, "another data set.*order on disk differs"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_same_cells_read_otherwise_are_refused(run, tmp_path, name):
    make, message = OTHERS[name]
    adata = cells()
    model = make_model(open_on_disk(write(adata, tmp_path / "cells.h5ad")))
    model.train(**RUN | {"max_epochs": 1}, checkpoint=run)
    other = make_model(make(adata, tmp_path))
    with pytest.raises(ValueError, match=message):
        other.train(**RUN | {"max_epochs": 1}, resume=run)
    assert not other.is_trained


class FailsForOne(Prior):
    """NaN for cells with this total, some time after training began."""

    def __init__(self, total: float) -> None:
        super().__init__()
        self.total, self.n_calls = total, 0

    def forward(self, batch: CellBatch) -> dist.Distribution:
        self.n_calls += self.training
        is_bad = (batch.x.sum(-1, keepdim=True) == self.total) & (self.n_calls > 8)
        loc = torch.zeros(len(batch), 3).masked_fill(is_bad, float("nan"))
        return dist.Normal(loc, 1.0).to_event(1)


def test_the_cell_for_which_the_loss_is_nan_is_named(run, tmp_path):
    adata = cells()
    totals = np.asarray(adata.X.sum(1)).ravel()
    _, first, n = np.unique(totals, return_index=True, return_counts=True)
    bad = first[n == 1][0]
    model = make_model(
        open_on_disk(write(adata, tmp_path / "cells.h5ad")),
        background_prior=FailsForOne(float(totals[bad])),
    )
    with pytest.raises(NonFiniteLossError, match=rf"in 1 of \d+ cells, 'cell{bad}'"):
        model.train(**RUN | {"checkpoint_every_n_epochs": None}, train_size=1.0)


def test_genes_without_counts_and_large_ones_are_found_some_cells_at_a_time(tmp_path, monkeypatch):
    adata = cells()
    counts = adata.X.toarray()
    counts[:, 4] = 0
    counts[100, 5] = 2**24 + 2
    counts[3] = 0
    counts[:3, 6], counts[3:, 6] = 1, 0  # a gene that the first cells alone have
    adata.X = type(adata.X)(counts)
    read = read_in_pieces(monkeypatch)
    texts = []
    for each in (adata, open_on_disk(write(adata, tmp_path / "cells.h5ad"))):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ContrastiveVI.setup_anndata(each, condition_key="condition", background="control")
        texts.append([str(w.message) for w in caught])
    assert texts[0] == texts[1]
    for text in ("1 of 120 cells have no", "1 of 12 genes have no counts", "up to 16,777,218"):
        assert sum(text in found for found in texts[1]) == 1
    assert max(read) <= AT_A_TIME
