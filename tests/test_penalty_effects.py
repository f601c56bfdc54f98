"""Each penalty does what it claims, on simulated counts whose latents are known."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pyro
import pytest
from sklearn.linear_model import LogisticRegression
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

pytestmark = pytest.mark.slow
N_CELLS, N_GENES, N_EPOCHS = 500, 100, 120  # cells of each population


def counts(correlation: float, shift: float) -> ad.AnnData:
    """Poisson counts, log-linear in z and s; s of treated cells goes with z, around `shift`."""
    rng = np.random.default_rng(0)
    treated = np.arange(2 * N_CELLS) >= N_CELLS
    z = rng.standard_normal((2 * N_CELLS, 2))
    noise = rng.standard_normal((2 * N_CELLS, 2))
    s = shift + correlation * z + np.sqrt(1 - correlation**2) * noise
    loadings = rng.normal(0, 0.5, (4, N_GENES))
    log_rate = rng.normal(0, 1, N_GENES) + np.hstack([z, s * treated[:, None]]) @ loadings
    rate = np.exp(log_rate)
    x = rng.poisson(1000 * rate / rate.sum(1, keepdims=True)).astype(np.float32)
    obs = pd.DataFrame({"condition": np.where(treated, "treated", "control")})
    return ad.AnnData(x, obs=obs.set_index(obs.index.astype(str)))


def latents(adata: ad.AnnData, *penalties: Penalty) -> tuple[np.ndarray, np.ndarray, ContrastiveVI]:
    """Posterior means of z and s after training with these penalties."""
    pyro.set_rng_seed(0)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    model = ContrastiveVI(
        adata, n_background_latent=2, n_salient_latent=2, n_hidden=64, penalties=penalties
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
    adata = counts(0.8, 0.0)
    z, s, _ = latents(adata)
    return adata, gaussian_information(z[N_CELLS:], s[N_CELLS:])


@pytest.mark.parametrize("penalty", [HSIC(10.0), TotalCorrelation(5.0, 2, 2)], ids=lambda p: p.name)
def test_dependence_of_z_and_s_is_taken_out(dependent, penalty) -> None:
    adata, without = dependent
    z, s, model = latents(adata, penalty)
    print(f"{penalty.name}: {without:.3f} -> {gaussian_information(z[N_CELLS:], s[N_CELLS:]):.3f}")
    assert without > 0.25
    assert gaussian_information(z[N_CELLS:], s[N_CELLS:]) < 0.2 * without
    recorded = model.history[f"{penalty.name}_train"].to_numpy().ravel()
    assert len(recorded) == N_EPOCHS
    assert abs(recorded[-10:].mean()) < 0.1


@pytest.fixture(scope="module")
def shifted():
    """Counts where treatment shifts s, and what is inferred without a penalty."""
    adata = counts(0.0, 1.0)
    return adata, latents(adata)[:2]


def accuracy(latent: np.ndarray) -> float:
    """How well background and target cells can be told apart, linearly; 1/2 is chance."""
    treated = np.arange(2 * N_CELLS) >= N_CELLS
    return cross_val_score(LogisticRegression(), latent, treated, cv=5).mean()


def test_mmd_makes_z_the_same_in_both_populations(shifted) -> None:
    adata, (without, _) = shifted
    z, _, _ = latents(adata, MMD(30.0))
    print(f"MMD on z: {accuracy(without):.3f} -> {accuracy(z):.3f}")
    assert accuracy(without) > 0.6
    assert accuracy(z) - 0.5 < 0.5 * (accuracy(without) - 0.5)


@pytest.mark.parametrize(
    "penalty", [Wasserstein(5.0), NarrowSalient(1.0), MMD(30.0, "s")], ids=lambda p: p.name
)
def test_s_of_background_cells_is_pinned_to_zero(shifted, penalty) -> None:
    adata, (_, without) = shifted
    _, s, _ = latents(adata, penalty)

    def share(of: np.ndarray) -> float:
        squares = (of**2).sum(1)
        return squares[:N_CELLS].mean() / squares[N_CELLS:].mean()

    print(f"{penalty.name}: {share(without):.3f} -> {share(s):.3f}")
    assert share(s) < 0.3 * share(without)


def test_the_classifier_sets_populations_apart_in_s(shifted) -> None:
    adata, (_, without) = shifted
    _, s, _ = latents(adata, SalientClassifier(10.0, 2))
    print(f"classifier: {accuracy(without):.3f} -> {accuracy(s):.3f}")
    assert accuracy(s) > accuracy(without) + 0.05
