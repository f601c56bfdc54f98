"""Cells kept on a device give the same mini-batches as cells on the host."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from helpers import make_vae
from scipy.sparse import csr_matrix

from pyro_contrastive.data import resident
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.resident import ResidentCells, on_device_if_it_fits
from pyro_contrastive.density.nonzero import NonZero, nonzero_of

N_CELLS, N_GENES = 40, 12


def make_data(density: float = 0.1, *, size_factor: bool = False) -> CellData:
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (N_CELLS, N_GENES)) * (rng.random((N_CELLS, N_GENES)) < density)
    counts[3] = 0
    return CellData(
        csr_matrix(counts.astype(np.float32)),
        condition=rng.integers(0, 3, N_CELLS),
        conditions=("a", "b", "c"),
        batch=rng.integers(0, 2, N_CELLS),
        categorical=rng.integers(0, 2, (N_CELLS, 1)),
        continuous=rng.normal(size=(N_CELLS, 2)).astype(np.float32),
        size_factor=rng.random(N_CELLS).astype(np.float32) if size_factor else None,
    )


@pytest.mark.parametrize("density", [0.1, 0.9])
@pytest.mark.parametrize("size_factor", [False, True])
def test_mini_batches_are_the_same(density: float, size_factor: bool) -> None:
    data = make_data(density, size_factor=size_factor)
    kept = ResidentCells(data, "cpu", torch.float32)
    assert len(kept) == N_CELLS
    assert kept.conditions == data.conditions
    for indices in (np.array([7, 3, 39, 0, 7]), np.arange(N_CELLS), np.array([3])):
        one, other = data.cells(indices), kept.cells(indices)
        for name in ("condition", "x", "batch", "categorical", "continuous", "library"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert (one.rows is None) == (other.rows is None)
        if one.rows is not None:
            weight = torch.randn(5, N_GENES)
            assert torch.equal(one.rows.linear(weight), other.rows.linear(weight))
        for a, b in zip(nonzero_of(other.x), NonZero.of(one.x), strict=True):
            assert torch.equal(a, b)


def test_counts_go_to_a_gpu_one_way_or_the_other() -> None:
    data = make_data()
    dense = data.cells(np.arange(3), "meta")
    assert (dense.x.device.type, dense.rows) == ("meta", None)
    sparse = data.cells(np.arange(3), "meta", dense=False)
    assert sparse.x is None
    assert sparse.rows.cells_by_genes.values.device.type == "meta"


def test_the_loss_is_the_same() -> None:
    data, vae = make_data(), make_vae(n_batch=2, n_cats_per_cov=[2], n_continuous_cov=2).eval()
    indices, losses = np.arange(N_CELLS), []
    for cells in (data, ResidentCells(data, "cpu", torch.float32)):
        torch.manual_seed(0)
        losses.append(vae.objective.loss(vae.model, vae.guide, cells.cells(indices)))
    assert losses[0] == losses[1]


def test_another_device_or_dtype_is_refused() -> None:
    kept = ResidentCells(make_data(), "cpu", torch.float32)
    with pytest.raises(ValueError, match=r"float32 on cpu, not torch\.float64"):
        kept.cells(np.arange(2), dtype=torch.float64)
    dense = CellData(np.ones((3, 2), np.float32))
    with pytest.raises(TypeError, match="dense"):
        ResidentCells(dense, "cpu", torch.float32)


def test_counts_go_to_a_gpu_if_they_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data, made = make_data(), []
    monkeypatch.setattr(resident, "ResidentCells", lambda *a: made.append(a) or "kept")
    cuda = torch.device("cuda")
    assert on_device_if_it_fits(data, torch.device("cpu"), torch.float32) is data
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 10**9))
    assert on_device_if_it_fits(data, cuda, torch.float32) == "kept"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 10**9))
    with caplog.at_level(logging.INFO, "pyro_contrastive"):
        assert on_device_if_it_fits(data, cuda, torch.float32) is data
    assert "stay on the host" in caplog.text
    assert len(made) == 1
