"""Encoders on sparse rows: the same numbers as on dense counts."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import make_vae
from pyro.infer import TraceMeanField_ELBO

from pyro_contrastive import CellBatch, Gaussian, Likelihood, NegativeBinomial
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.sparse_rows import PAYS_BELOW, SparseRows

CPU = "cpu"


def counts(density: float = 0.1, seed: int = 0) -> scipy.sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    dense = rng.poisson(2.0, (30, 12)) * (rng.random((30, 12)) < density)
    return scipy.sparse.csr_matrix(dense.astype(np.float32))


def both(**kwargs) -> tuple[CellBatch, CellBatch]:
    """The same cells with and without sparse rows."""
    data = CellData(counts(), condition=np.arange(30) % 2, **kwargs)
    batch = data.cells(np.arange(30))
    assert batch.rows is not None
    return batch, CellBatch(
        condition=batch.condition, x=batch.x, batch=batch.batch, library=batch.library
    )


@pytest.mark.parametrize("latent_library", [False, True])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_loss_and_every_gradient_are_the_same(n_layers, latent_library) -> None:
    vae = make_vae(
        n_batch=2, n_layers=n_layers, latent_library=latent_library, elbo=TraceMeanField_ELBO
    )
    found = []
    for batch in both(batch=np.arange(30) % 3 % 2):
        torch.manual_seed(0)
        vae.zero_grad()
        vae.objective(vae.model, vae.guide)(batch).backward()
        found.append({name: p.grad.clone() for name, p in vae.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_product_and_its_gradient_by_hand() -> None:
    table = counts(0.2).astype(np.float64)
    rows = SparseRows.of(table, CPU, torch.float64)
    weight = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rows.linear, (weight,))
    np.testing.assert_allclose(
        rows.log1p().linear(weight).detach(), np.log1p(table.toarray()) @ weight.detach().numpy().T
    )


def test_cells_without_counts_and_no_cells_at_all() -> None:
    rows = SparseRows.of(scipy.sparse.csr_matrix((3, 12), dtype=np.float32), CPU, torch.float32)
    assert torch.equal(rows.linear(torch.randn(2, 12)), torch.zeros(3, 2))
    rows = SparseRows.of(scipy.sparse.csr_matrix((0, 12), dtype=np.float32), CPU, torch.float32)
    assert rows.linear(torch.randn(2, 12)).shape == (0, 2)


def test_dense_counts_stay_dense() -> None:
    assert SparseRows.of(counts(4 * PAYS_BELOW), CPU, torch.float32) is None
    data = CellData(counts().toarray())
    assert data.cells(np.arange(3)).rows is None


def test_other_inputs_are_computed_from_the_whole_matrix() -> None:
    class Scaled(NegativeBinomial):
        def encoder_input(self, x):
            return torch.log1p(x / (1 + x.sum(-1, keepdim=True)))

    for likelihood in (Scaled(), Gaussian()):
        assert not make_vae(likelihood=likelihood).guide.takes_logs
        vae = make_vae(likelihood=likelihood.__class__()).eval()
        sparse, dense = (vae.guide.encode(batch)["z"][0] for batch in both())
        assert torch.equal(sparse, dense)
    assert make_vae().guide.takes_logs
    assert issubclass(NegativeBinomial, Likelihood)


def test_rows_move_with_the_batch() -> None:
    batch, _ = both()
    moved = batch.to("meta")
    assert moved.rows.genes_by_cells.values.device.type == "meta"
    assert CellBatch.cat([batch, batch]).rows is None  # dense: nothing is wrong, only slower
