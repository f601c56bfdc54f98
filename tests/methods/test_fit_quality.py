"""ELBO, reconstruction error and marginal likelihood by the model's methods."""

from __future__ import annotations

import numpy as np
import pytest
from small_model import make


def test_bounds_are_ordered_and_per_cell(adata) -> None:
    model = make(adata)
    per_cell = model.get_elbo(return_mean=False, seed=0)
    assert per_cell.shape == (26,)
    assert model.get_elbo(seed=0) == pytest.approx(per_cell.mean())
    recon = model.get_reconstruction_error(return_mean=False, seed=0)["reconstruction_loss"]
    assert (-recon > per_cell).all()  # the ELBO is that less a KL divergence
    assert (recon > 0).all()  # an error: lower is better, as in scvi-tools
    better = model.get_marginal_ll(n_mc_samples=200, return_mean=False, seed=0)
    assert better.mean() > per_cell.mean()
    assert model.get_marginal_ll(n_mc_samples=50, indices=[3, 4], seed=0) == pytest.approx(
        model.get_marginal_ll(n_mc_samples=50, indices=[3, 4], seed=0)
    )


@pytest.mark.slow
def test_elbo_per_cell_adds_up_to_the_history(adata) -> None:
    model = make(adata)
    everything = {"train_size": 0.5, "validation_size": 0.5, "shuffle_set_split": False}
    model.train(max_epochs=1, enable_progress_bar=False, seed=0, **everything)
    held_out = np.r_[0:6, 12:19]  # in order: validation cells come first
    many = np.mean(
        [model.get_elbo(indices=held_out, return_mean=False, seed=i) for i in range(300)], axis=0
    )
    per_pair = -(many[:6].mean() + many[6:].mean())
    recorded = model.history["elbo_validation"]["elbo_validation"].iloc[-1]
    assert per_pair == pytest.approx(recorded, rel=0.05)
