"""Encoders on sparse rows: the same numbers as on dense counts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import make_vae
from pyro.infer import TraceMeanField_ELBO

from pyro_contrastive import CellBatch, Gaussian, Likelihood, NegativeBinomial, Poisson
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.counts import read_counts
from pyro_contrastive.density import nonzero
from pyro_contrastive.density.distributions import NegativeBinomialDistribution as Plain
from pyro_contrastive.density.distributions import (
    ZeroInflatedNegativeBinomialDistribution as ZeroInflated,
)
from pyro_contrastive.guides import (
    ConditionalGuide,
    ContrastiveGuide,
    FlowGuide,
    FullCovarianceGuide,
)
from pyro_contrastive.observed.observation import SparseValues
from pyro_contrastive.observed.sparse_rows import PAYS_BELOW, SparseRows

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


@pytest.mark.parametrize("family", [FullCovarianceGuide, FlowGuide, ConditionalGuide])
def test_other_guides_have_the_same_posterior(family) -> None:
    torch.manual_seed(0)
    vae = make_vae(n_layers=2, latent_library=True, guide=family()).eval()
    assert not vae.guide.needs_dense
    with torch.no_grad():
        found = [vae.guide.marginals(batch) for batch in both()]
    for site, moments in found[0].items():
        for one, other in zip(moments, found[1][site], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


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


def test_the_transpose_by_sorting_is_the_one_by_counting() -> None:
    rows = SparseRows.of(counts(), CPU, torch.float32).cells_by_genes
    found, counted = rows.transposed_by_sorting(12), rows.transposed(12)
    for name in ("indices", "offsets", "values"):
        assert torch.equal(getattr(found, name), getattr(counted, name))


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


def test_encoder_weights_lie_in_memory_as_their_gradient_does(tmp_path) -> None:
    vae = make_vae()
    batch, _ = both()
    for _ in range(2):  # also after a trip through a file of weights
        vae.zero_grad()
        vae.objective(vae.model, vae.guide)(batch).backward()
        for encoder in (vae.guide.z_encoder, vae.guide.s_encoder):
            weight = encoder.body.blocks[0].linear.weight
            assert weight.t().is_contiguous()
            assert weight.grad.stride() == weight.stride()
        vae.load_state_dict({k: v.contiguous() for k, v in vae.state_dict().items()})


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each evaluation of a density had to search for the non-zero counts."""
    made: list[bool] = []
    original = nonzero.NonZero.of

    def of(value: torch.Tensor, at: Any = None) -> nonzero.NonZero:
        made.append(at is None)
        return original(value, at)

    monkeypatch.setattr(nonzero.NonZero, "of", of)
    return made


def test_where_counts_are_not_zero_is_known_and_changes_nothing(searches: list[bool]) -> None:
    batch, plain = both()
    assert plain.x is batch.x
    torch.manual_seed(0)
    mean, theta, logits = 9 * torch.rand(30, 12), torch.rand(12) + 0.1, torch.randn(30, 12)
    for make in (lambda: Plain(mean, theta), lambda: ZeroInflated(mean, theta, logits)):
        found = make().log_prob(batch.x)
        torch.testing.assert_close(found, make().log_prob(batch.x.clone()), rtol=0, atol=0)
    assert searches == [False, True, True], "known, and found once; the copies are searched"
    drawn = ZeroInflated(mean.expand(3, 30, 12), theta, logits).log_prob(batch.x)  # another shape
    torch.testing.assert_close(drawn[2], found, rtol=0, atol=0)


@pytest.mark.parametrize("likelihood", [NegativeBinomial(), Poisson()])
def test_a_loss_searches_for_no_counts(likelihood: Likelihood, searches: list[bool]) -> None:
    batch, plain = both()
    vae = make_vae(likelihood=likelihood).eval()
    losses = []
    for cells in (batch, plain.observing(plain.x.clone())):
        torch.manual_seed(0)
        losses.append(vae.objective.loss(vae.model, vae.guide, cells))
    assert searches == [False, True]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_copies_of_counts_are_ordinary_tensors() -> None:
    batch, _ = both()
    assert type(batch.x) is SparseValues
    copies = [copy.deepcopy(batch.x), pickle.loads(pickle.dumps(batch.x)), batch.x * 1, batch.x[:]]
    for each in [*copies, batch.take(torch.arange(30)).x]:
        assert type(each) is torch.Tensor
        assert torch.equal(each, batch.x)


def test_counts_that_were_changed_in_place_are_searched_again() -> None:
    batch, _ = both()
    mean, theta = torch.full((30, 12), 2.0), torch.ones(12)
    batch.x[:] = 3.0
    torch.testing.assert_close(
        Plain(mean, theta).log_prob(batch.x), Plain(mean, theta).log_prob(torch.full((30, 12), 3.0))
    )


@pytest.mark.parametrize("kind", ["stored zeros", "entries in two parts"])
def test_odd_but_legal_sparse_counts_are_the_same_data(kind) -> None:
    table = counts().tocoo()
    if kind == "stored zeros":
        row, column = np.append(table.row, 0), np.append(table.col, np.argmin(counts()[[0]]))
        values = np.append(table.data, 0)
        odd = scipy.sparse.coo_matrix((values, (row, column)), (30, 12)).tocsr()
    else:
        indices = np.repeat(counts().indices, 2)
        odd = scipy.sparse.csr_matrix(
            (np.repeat(counts().data / 2, 2), indices, 2 * counts().indptr), (30, 12)
        )
    assert odd.nnz > counts().nnz
    n_before = odd.nnz
    data = read_counts(ad.AnnData(odd), None)
    assert data.nnz == counts().nnz
    assert odd.nnz == n_before  # the user's own matrix is left alone
    np.testing.assert_array_equal(data.toarray(), counts().toarray())


def test_rows_move_with_the_batch() -> None:
    batch, _ = both()
    moved = batch.to("meta")
    assert moved.rows.cells_by_genes.values.device.type == "meta"
    assert CellBatch.cat([batch, batch]).rows is None  # dense: nothing is wrong, only slower


def test_cells_without_their_dense_counts_have_the_same_latents() -> None:
    rng = np.random.default_rng(0)
    counts = scipy.sparse.csr_matrix(rng.poisson(0.1, (30, 12)).astype(np.float32))
    data, vae = CellData(counts), make_vae().eval()
    whole, bare = data.cells(np.arange(30)), data.cells(np.arange(30), dense=False)
    assert bare.x is None
    assert bare.rows is not None
    assert torch.equal(bare.observed_library(), whole.observed_library())
    for (name, one), other in zip(
        vae.guide.encode(whole).items(), vae.guide.encode(bare).values(), strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), name
    full = CellData(scipy.sparse.csr_matrix(np.ones((3, 12), np.float32)))
    assert full.cells(np.arange(3), dense=False).x is not None, "no sparse rows where they cost"


def test_a_guide_that_may_look_at_dense_counts_gets_them() -> None:
    class Looking(ContrastiveGuide):
        def encode(self, batch):
            assert batch.x is not None
            return super().encode(batch)

    vae = make_vae()
    assert not vae.guide.needs_dense
    vae.guide.__class__ = Looking
    assert vae.guide.needs_dense


def test_indices_of_two_types_are_made_one():
    # SciPy converts all indices of such a matrix, which files may hold, whenever rows are taken.
    adata = ad.AnnData(scipy.sparse.csr_matrix(np.eye(5, dtype=np.float32)))
    adata.X.indptr = adata.X.indptr.astype(np.int64)
    adata.X.indices = adata.X.indices.astype(np.int32)
    counts = read_counts(adata, None)
    assert counts.indptr.dtype == counts.indices.dtype
    assert adata.X.indptr.dtype == np.int64  # the AnnData itself does not change
    np.testing.assert_array_equal(counts.toarray(), np.eye(5))
