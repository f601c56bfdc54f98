"""Each penalty does what it claims, on simulated counts whose latents are known."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pyro
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import cross_val_score

from pyro_contrastive import (
    HSIC,
    MMD,
    ContrastiveVI,
    NarrowSalient,
    Penalty,
    SalientClassifier,
    TotalCorrelation,
    Wasserstein,
)
from pyro_contrastive.testing import SimulationSettings, simulate

pytestmark = pytest.mark.slow
N_CELLS, N_GENES, N_EPOCHS = 600, 100, 100  # cells of each population
TREATED = np.arange(2 * N_CELLS) >= N_CELLS


def dependent_counts() -> ad.AnnData:
    """Poisson counts, log-linear in z and s; s of treated cells goes with z."""
    rng = np.random.default_rng(0)
    z, noise = rng.standard_normal((2, 2 * N_CELLS, 2))
    s = (0.8 * z + 0.6 * noise) * TREATED[:, None]
    loadings = rng.normal(0, 0.5, (4, N_GENES))
    rate = np.exp(rng.normal(0, 1, N_GENES) + np.hstack([z, s]) @ loadings)
    x = rng.poisson(1000 * rate / rate.sum(1, keepdims=True)).astype(np.float32)
    obs = pd.DataFrame({"condition": np.where(TREATED, "treated", "control")})
    return ad.AnnData(x, obs=obs.set_index(obs.index.astype(str)))


def latents(
    adata: ad.AnnData, n_latent: int, *penalties: Penalty
) -> tuple[np.ndarray, np.ndarray, ContrastiveVI]:
    """Posterior means of z and s after training with these penalties."""
    pyro.set_rng_seed(0)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    model = ContrastiveVI(
        adata,
        n_background_latent=n_latent,
        n_salient_latent=n_latent,
        n_hidden=64,
        penalties=penalties,
    )
    model.train(
        max_epochs=N_EPOCHS,
        seed=0,
        enable_progress_bar=False,
        check_val_every_n_epoch=None,
        plan_kwargs={"lr": 3e-3, "eps": 1e-8},
    )
    kinds = ("background", "salient")
    z, s = (model.get_latent_representation(representation_kind=kind) for kind in kinds)
    return z, s, model


def gaussian_information(z: np.ndarray, s: np.ndarray) -> float:
    """Mutual information in nats, if both were jointly normal."""
    log_det = [np.linalg.slogdet(np.cov(part.T))[1] for part in (z, s, np.hstack([z, s]))]
    return 0.5 * (log_det[0] + log_det[1] - log_det[2])


@pytest.fixture(scope="module")
def dependent():
    """Counts where s goes with z, and what is inferred without a penalty."""
    adata = dependent_counts()
    z, s, _ = latents(adata, 2)
    return adata, gaussian_information(z[N_CELLS:], s[N_CELLS:])


@pytest.mark.parametrize("penalty", [HSIC(10.0), TotalCorrelation(5.0, 2, 2)], ids=lambda p: p.name)
def test_dependence_of_z_and_s_is_taken_out(dependent, penalty) -> None:
    adata, without = dependent
    z, s, model = latents(adata, 2, penalty)
    print(f"{penalty.name}: {without:.3f} -> {gaussian_information(z[N_CELLS:], s[N_CELLS:]):.3f}")
    assert without > 0.25
    assert gaussian_information(z[N_CELLS:], s[N_CELLS:]) < 0.2 * without
    recorded = model.history[f"{penalty.name}_train"].to_numpy().ravel()
    assert len(recorded) == N_EPOCHS
    assert abs(recorded[-10:].mean()) < 0.1


@pytest.fixture(scope="module")
def roomy():
    """Counts of independent z and s, and what is inferred with more dimensions than needed."""
    adata = simulate(SimulationSettings(n_background=N_CELLS, n_target=N_CELLS), seed=3)
    return adata, latents(adata, 5)[:2]


def explained(truth: np.ndarray, latent: np.ndarray) -> float:
    """Share of the variance of the true latents that is linear in the inferred ones."""
    return LinearRegression().fit(latent, truth).score(latent, truth)


def test_mmd_keeps_s_out_of_z(roomy) -> None:
    adata, (without, _) = roomy
    z, _, _ = latents(adata, 5, MMD(30.0))
    s = adata.obsm["s"]
    before, after = (explained(s[TREATED], latent[TREATED]) for latent in (without, z))
    print(f"MMD on z, share of s in z: {before:.3f} -> {after:.3f}")
    assert after < 0.6 * before


@pytest.mark.parametrize(
    "penalty", [Wasserstein(5.0), NarrowSalient(1.0), MMD(30.0, "s")], ids=lambda p: p.name
)
def test_s_of_background_cells_is_pinned_to_zero(roomy, penalty) -> None:
    adata, (_, without) = roomy
    _, s, _ = latents(adata, 5, penalty)

    def share(of: np.ndarray) -> float:
        squares = (of**2).sum(1)
        return squares[~TREATED].mean() / squares[TREATED].mean()

    print(
        f"{penalty.name}, square of s, background / target: {share(without):.3f} -> {share(s):.3f}"
    )
    assert share(s) < 0.5 * share(without)


def accuracy(latent: np.ndarray) -> float:
    """How well background and target cells can be told apart, linearly; 1/2 is chance."""
    return cross_val_score(LogisticRegression(), latent, TREATED, cv=5).mean()


def test_the_classifier_sets_populations_apart_in_s(roomy) -> None:
    adata, (_, without) = roomy
    _, s, _ = latents(adata, 5, SalientClassifier(10.0, 5))
    print(f"classifier, accuracy from s: {accuracy(without):.3f} -> {accuracy(s):.3f}")
    assert accuracy(s) > accuracy(without) + 0.1
