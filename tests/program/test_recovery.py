"""Inference on simulated data with known truth."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
from sklearn.linear_model import LinearRegression

from pyro_contrastive import MMD, ContrastiveVI
from pyro_contrastive.testing import SimulationSettings, simulate


def explained(truth: np.ndarray, latent: np.ndarray) -> float:
    """Fraction of the variance of the true latents that is linear in the inferred ones."""
    return float(LinearRegression().fit(latent, truth).score(latent, truth))


def fit(adata, **kwargs) -> ContrastiveVI:
    pyro.set_rng_seed(0)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    model = ContrastiveVI(adata, n_background_latent=3, n_salient_latent=2, **kwargs)
    model.train(
        max_epochs=120, seed=0, enable_progress_bar=False, plan_kwargs={"lr": 3e-3, "eps": 1e-8}
    )
    return model


def test_the_simulation_is_what_it_says() -> None:
    settings = SimulationSettings(n_background=2000, n_target=500, n_genes=20)
    adata = simulate(settings, seed=1)
    x, rate = adata.X.toarray(), adata.obs["library"].to_numpy()[:, None] * adata.layers["scale"]
    assert not adata.obsm["s"][:2000].any()
    assert adata.obsm["s"][2000:].std() == pytest.approx(1.0, abs=0.1)
    assert adata.layers["scale"].sum(1) == pytest.approx(np.ones(2500), abs=1e-4)
    variance = 0.95 * (rate + rate**2 / 5 + 0.05 * rate**2)
    error = (x - 0.95 * rate).mean(0) / np.sqrt(variance.mean(0) / 2500)
    assert np.abs(error).max() < 5
    assert np.array_equal(x, simulate(settings, seed=1).X.toarray())
    assert not np.array_equal(x, simulate(settings, seed=2).X.toarray())


@pytest.mark.slow
@pytest.mark.parametrize("use_observed_lib_size", [True, False])
def test_both_latents_are_recovered(use_observed_lib_size) -> None:
    adata = simulate(SimulationSettings(n_background=1000, n_target=1000, n_genes=200), seed=3)
    model = fit(
        adata,
        use_observed_lib_size=use_observed_lib_size,
        wasserstein_penalty=1.0,
        penalties=[MMD(10.0)],
    )
    target = (adata.obs["condition"] == "treated").to_numpy()
    z = model.get_latent_representation(representation_kind="background")
    s = model.get_latent_representation(representation_kind="salient")
    assert explained(adata.obsm["z"], z) > 0.85
    assert explained(adata.obsm["s"][target], s[target]) > 0.85
    # Neither latent predicts the other's truth.
    assert explained(adata.obsm["s"][target], z[target]) < 0.2
    assert explained(adata.obsm["z"][target], s[target]) < 0.2


@pytest.mark.slow
def test_the_inferred_library_size_is_the_true_one() -> None:
    adata = simulate(SimulationSettings(n_background=1000, n_target=1000, n_genes=200), seed=4)
    model = fit(adata, use_observed_lib_size=False)
    data = model.setup.extract(adata)
    moments = model.module.eval().guide.encode(data.cells(np.arange(2000)))["library"]
    inferred = moments[0].detach().numpy().ravel()
    truth = np.log(adata.obs["library"].to_numpy())
    assert np.corrcoef(inferred, truth)[0, 1] > 0.9
    assert np.abs(inferred - truth).mean() < 0.15
