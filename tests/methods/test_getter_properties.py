"""What is asked of a cell does not depend on the other cells, their order, or mini-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import GENES, make, small_adata

from pyro_contrastive import ContrastiveVI

N_CELLS = 26
# Without draws: means of posteriors, and what follows from them.
EXACT: dict[str, Callable[..., Any]] = {
    "salient": lambda model, adata=None, **kwargs: model.get_latent_representation(
        adata, representation_kind="salient", **kwargs
    ),
    "background": lambda model, adata=None, **kwargs: model.get_latent_representation(
        adata, representation_kind="background", **kwargs
    ),
    "library size": lambda model, adata=None, **kwargs: model.get_latent_library_size(
        adata, **kwargs
    ),
}
DRAWN: dict[str, Callable[..., Any]] = {
    "draw of s": lambda model, adata=None, **kwargs: model.get_latent_representation(
        adata, give_mean=False, **kwargs
    ),
    "expression": lambda model, adata=None, **kwargs: model.get_normalized_expression(
        adata, n_samples=2, return_mean=False, **kwargs
    )["salient"],
    "effect": lambda model, adata=None, **kwargs: model.get_treatment_effect(
        adata, n_samples=4, interval=0.5, **kwargs
    )["mean"].to_numpy(),
    "replicates": lambda model, adata=None, **kwargs: model.posterior_predictive_sample(
        adata, n_samples=2, **kwargs
    ),
}
ORDERS = st.permutations(range(N_CELLS))


@pytest.fixture(scope="module")
def model() -> ContrastiveVI:
    # Latent library sizes, so that they too come out of an encoder.
    return make(small_adata(), use_observed_lib_size=False)


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=12, deadline=None)
@given(order=ORDERS, n=st.integers(1, N_CELLS), batch_size=st.integers(1, 30))
def test_answers_without_draws_are_those_of_each_cell(name, model, order, n, batch_size) -> None:
    whole, cells = EXACT[name](model), np.array(order[:n])
    some = EXACT[name](model, indices=cells, batch_size=batch_size)
    np.testing.assert_allclose(some, whole[cells], rtol=1e-4, atol=1e-5)
    as_data = EXACT[name](model, model.adata[cells].copy(), batch_size=batch_size)
    np.testing.assert_allclose(as_data, whole[cells], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*EXACT, *DRAWN])
@settings(max_examples=4, deadline=None)
@given(order=st.permutations(range(GENES)), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_genes_in_the_data_does_not_matter(name, model, order, seed) -> None:
    ask = (EXACT | DRAWN)[name]
    turned = model.adata[:, list(order)].copy()
    seeded: dict[str, Any] = {"seed": seed}
    np.testing.assert_allclose(
        np.asarray(ask(model, turned, **seeded)),
        np.asarray(ask(model, **seeded)),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", DRAWN)
@settings(max_examples=4, deadline=None)
@given(order=ORDERS, batch_size=st.integers(6, 30), seed=st.integers(0, 2**32 - 1))
def test_the_same_question_has_the_same_answer(name, model, order, batch_size, seed) -> None:
    same = {"indices": np.array(order), "batch_size": batch_size, "seed": seed}
    if name == "effect":
        treated = (model.adata.obs["condition"] != "control").to_numpy()
        same["indices"] = same["indices"][treated[same["indices"]]]
    np.testing.assert_array_equal(DRAWN[name](model, **same), DRAWN[name](model, **same))


def mean_and_error(model: ContrastiveVI, adata: ad.AnnData | None, **kwargs: Any) -> Any:
    draws = model.get_normalized_expression(
        adata, n_samples=800, return_mean=False, return_numpy=True, **kwargs
    )["salient"]
    return draws.mean(0), draws.std(0) / np.sqrt(len(draws))


@pytest.mark.parametrize("batch_size", [1, 7, 26])
def test_draws_depend_on_mini_batches_but_their_distribution_does_not(model, batch_size) -> None:
    """As the shared argument `seed` says: other mini-batches are other draws."""
    order = np.random.default_rng(batch_size).permutation(N_CELLS)
    mean, error = mean_and_error(model, None, seed=0)
    other, its_error = mean_and_error(model, None, indices=order, batch_size=batch_size, seed=1)
    z = (other - mean[order]) / np.hypot(error[order], its_error)
    # Standard normal if the distributions are the same, and 390 of them: none above 5.
    assert np.abs(z).max() < 5
    assert 0.7 < z.std() < 1.3
