"""What holds of all methods: nothing is changed, nothing kept, empty cells are harmless."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pandas as pd
import pyro
import pytest
import scipy.sparse as sp
import torch
from small_model import make


def test_reading_leaves_model_data_and_random_state_alone(adata) -> None:
    model = make(adata)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    obs, state = adata.obs.copy(), torch.get_rng_state()
    model.get_normalized_expression(seed=0)
    model.get_elbo(seed=0)
    model.get_treatment_effect(seed=0, n_samples=3, interval=0.5)
    model.get_latent_library_size()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.module.state_dict().items())
    pd.testing.assert_frame_equal(obs, adata.obs)


@pytest.mark.parametrize("observed", [True, False])
def test_cells_without_counts_have_finite_results(adata, observed) -> None:
    kept = sp.diags((np.arange(26) % 13 > 0).astype(np.float32))  # a cell of each population
    adata.X = (kept @ adata.X).tocsr()
    with pytest.warns(UserWarning, match="2 of 26 cells have no counts"):
        model = make(adata, use_observed_lib_size=observed)
    model.train(max_epochs=2, enable_progress_bar=False, train_size=0.8)
    table = model.differential_expression(groupby="condition", n_samples_overall=50, silent=True)
    empty = model.differential_expression(idx1=[0, 13], n_samples_overall=50, silent=True)
    results = [
        *model.get_normalized_expression(library_size="latent").values(),
        *model.get_treatment_effect(n_samples=39).values(),
        model.get_counterfactual_expression("treated"),
        model.get_latent_representation(representation_kind="background"),
        model.get_latent_representation(),
        model.get_latent_library_size(),
        model.get_elbo(return_mean=False),
        model.get_reconstruction_error(return_mean=False)["reconstruction_loss"],
        model.get_marginal_ll(n_mc_samples=5, return_mean=False),
        *(frame for frame in model.history.values()),
        *(frame.select_dtypes("number") for frame in (table, empty)),
    ]
    assert all(np.isfinite(np.asarray(result)).all() for result in results)


def test_models_are_freed(adata) -> None:
    model = make(adata)
    model.train(max_epochs=1, enable_progress_bar=False)
    model.get_normalized_expression()
    model.module.sample(3, library=10.0)
    weight = weakref.ref(model.module.model.decoder.blocks[0].linear.weight)
    del model
    gc.collect()
    assert weight() is None
    assert not list(pyro.get_param_store().keys())
