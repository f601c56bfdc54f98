"""A question about a few cells reads and checks these, and answers as one about all cells does."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.data import counts as counts_room
from pyro_contrastive.testing import SimulationSettings, simulate

N_CELLS, N_GENES = 40, 12
FEW = np.array([31, 3, 8])


def made(matrix: Callable[[np.ndarray], object] = sp.csr_matrix) -> ad.AnnData:
    settings = SimulationSettings(n_background=20, n_target=20, n_genes=N_GENES)
    adata = simulate(settings, seed=0)
    adata.X = matrix(sp.csr_matrix(adata.X).toarray())
    adata.obs_names = [f"c{i}" for i in range(N_CELLS)]
    return adata


def model_of(adata: ad.AnnData, **setup: str) -> ContrastiveVI:
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control", **setup)
    model = ContrastiveVI(adata, n_hidden=8, n_background_latent=2, n_salient_latent=2)
    model.is_trained = True
    return model


def in_layer(adata: ad.AnnData) -> ad.AnnData:
    adata.layers["raw"] = adata.X.copy()
    adata.X = np.log1p(adata.X)
    return adata


KINDS: dict[str, Callable[[], ad.AnnData]] = {
    "csr": made,
    "csc": lambda: made(sp.csc_matrix),
    "dense": lambda: made(np.asarray),
    "integers": lambda: made(lambda x: sp.csr_matrix(x.astype(np.int64))),
    "genes in another order": lambda: made()[:, ::-1],
    "a view of some cells": lambda: made()[np.arange(N_CELLS) != 1],
}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_a_question_about_all(kind: str) -> None:
    model, adata = model_of(made()), KINDS[kind]()
    every = model.get_latent_representation(adata, representation_kind="salient")
    found = model.get_latent_representation(adata, FEW, representation_kind="salient")
    np.testing.assert_allclose(found, every[FEW], rtol=1e-5, atol=1e-6)


def test_a_layer_is_read_too() -> None:
    model = model_of(in_layer(made()), layer="raw")
    every = model.get_latent_representation()
    np.testing.assert_allclose(model.get_latent_representation(indices=FEW), every[FEW], rtol=1e-5)


def test_other_cells_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = model_of(made()), []
    original = counts_room.read_counts

    def read_counts(adata, layer, cells=None):
        read.append(cells)
        return original(adata, layer, cells)

    monkeypatch.setattr(counts_room, "read_counts", read_counts)
    model.get_elbo(indices=FEW)
    assert [cells.tolist() for cells in read] == [FEW.tolist()], "once, and only these"


@pytest.mark.parametrize(
    ("value", "match"), [(-1.0, "must hold raw counts"), (np.nan, "must hold finite numbers")]
)
@pytest.mark.parametrize("given", [False, True])
def test_cells_that_are_asked_for_are_checked_each_time(
    value: float, match: str, given: bool
) -> None:
    model = model_of(made(np.asarray))
    before = model.get_latent_representation(indices=FEW)
    adata = model.adata.copy() if given else model.adata
    adata.X[5, 7] = value  # changed in place since the model was made
    chosen = adata if given else None
    np.testing.assert_array_equal(model.get_latent_representation(chosen, FEW), before)
    for indices in ([5], [5, 3], None):
        with pytest.raises(ValueError, match=f"{match}.*cell 'c5', gene '{adata.var_names[7]}'"):
            model.get_latent_representation(chosen, indices)


@pytest.mark.parametrize("damage", ["row ends outside", "column outside", "too few ends"])
def test_damaged_rows_are_refused_before_they_are_read(damage: str) -> None:
    model = model_of(made())
    matrix = model.adata.X
    if damage == "row ends outside":
        matrix.indptr[FEW[0] + 1] = matrix.nnz + 10**6
    elif damage == "column outside":
        matrix.indices[matrix.indptr[FEW[0]]] = N_GENES + 5
    else:
        matrix.indptr = matrix.indptr[:-1]
    with pytest.raises(ValueError, match="damaged sparse matrix"):
        model.get_latent_representation(indices=FEW)


def test_conditions_given_to_train_are_known_of_a_few_cells() -> None:
    adata = made()
    ContrastiveVI.setup_anndata(adata)
    model = ContrastiveVI(adata, n_hidden=8, n_background_latent=2, n_salient_latent=2)
    is_target = adata.obs["condition"].to_numpy() != "control"
    model.train(
        max_epochs=1,
        background_indices=np.flatnonzero(~is_target),
        target_indices=np.flatnonzero(is_target),
        enable_progress_bar=False,
    )
    data = model._query(None, FEW).data
    assert (data.condition[FEW] > 0).tolist() == is_target[FEW].tolist()
    adata.X[FEW[0]] = adata.X[FEW[0]] * 2  # another cell, by its total
    with pytest.warns(UserWarning, match="1 of these cells were neither"):
        model.get_elbo(indices=FEW)
