"""Each penalty does what it claims, on simulated counts whose latents are known.

Training amplifies the rounding of whichever CPU it runs on, so every effect here is made large: the
simulation is such that a model without the penalty gets it badly wrong, and the limit lies at half
of that, at least twice what the penalty leaves.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import cross_val_score

from pyro_contrastive import (
    HSIC,
    MMD,
    ContrastiveVI,
    LateSalient,
    NarrowSalient,
    Penalty,
    Poisson,
    SalientClassifier,
    TotalCorrelation,
    Wasserstein,
)
from pyro_contrastive.testing import SimulationSettings, simulate

pytestmark = pytest.mark.slow
N_CELLS, N_GENES = 600, 60  # cells of each population
SEED = 0  # of the training; the limits were tried with 0 and 1
TREATED = np.arange(2 * N_CELLS) >= N_CELLS


Z, NOISE = np.random.default_rng(0).standard_normal((2, 2 * N_CELLS, 2))
LOADINGS = np.random.default_rng(1).normal(0, 0.5, (2, N_GENES))
BASE = np.random.default_rng(2).normal(0, 1, N_GENES)


def counts(log_change: np.ndarray) -> ad.AnnData:
    """Poisson counts, about 1,000 in every cell."""
    rate = np.exp(BASE + log_change)
    x = np.random.default_rng(3).poisson(1000 * rate / rate.sum(1, keepdims=True))
    obs = pd.DataFrame({"condition": np.where(TREATED, "treated", "control")})
    return ad.AnnData(x.astype(np.float32), obs=obs.set_index(obs.index.astype(str)))


def make(adata: ad.AnnData, n_latent: int, *penalties: Penalty, **more) -> ContrastiveVI:
    """Make a model with `n_latent` dimensions of z and of s."""
    pyro.set_rng_seed(SEED)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    return ContrastiveVI(
        adata,
        n_background_latent=n_latent,
        n_salient_latent=n_latent,
        n_hidden=64,
        penalties=penalties,
        **more,
    )


def latents(model: ContrastiveVI, *, mean: bool = True, n_epochs: int = 60) -> list[np.ndarray]:
    """Train, and return posterior means (or draws) of z and s."""
    model.train(
        max_epochs=n_epochs,
        seed=SEED,
        enable_progress_bar=False,
        check_val_every_n_epoch=None,
        plan_kwargs={"lr": 3e-3, "eps": 1e-8},
    )
    return [
        model.get_latent_representation(representation_kind=kind, give_mean=mean, seed=0)
        for kind in ("background", "salient")
    ]


def ambiguous_counts() -> ad.AnnData:
    """Counts in which z and s change the same genes, so that either can tell what both do."""
    return counts((Z + (4.0 + NOISE) * TREATED[:, None]) @ LOADINGS)


def make_ambiguous(adata: ad.AnnData, *penalties: Penalty) -> ContrastiveVI:
    """Make a model that knows how counts come from z + s; the guide decides which represents what.

    With no more than their priors both represent half of the change.
    """
    model = make(adata, 2, *penalties, likelihood=Poisson(), n_layers_decoder=0)
    decoder = model.module.model.likelihood.layers["scale"]
    with torch.no_grad():
        decoder.weight.copy_(torch.as_tensor(np.vstack([LOADINGS, LOADINGS]).T))
        decoder.bias.copy_(torch.as_tensor(BASE))
    decoder.requires_grad_(False)
    return model


DRAWS = {"mean": False, "n_epochs": 120}


@pytest.fixture(scope="module")
def ambiguous():
    """Counts that z and s can both tell, and draws of them without a penalty."""
    adata = ambiguous_counts()
    return adata, latents(make_ambiguous(adata), **DRAWS)


def gaussian_information(z: np.ndarray, s: np.ndarray) -> float:
    """Mutual information in nats of z and s of treated cells, if both were jointly normal."""
    z, s = z[TREATED], s[TREATED]
    log_det = [np.linalg.slogdet(np.cov(part.T))[1] for part in (z, s, np.hstack([z, s]))]
    return 0.5 * (log_det[0] + log_det[1] - log_det[2])


@pytest.mark.parametrize(
    "penalty", [HSIC(100.0), TotalCorrelation(5.0, 2, 2)], ids=lambda p: p.name
)
def test_dependence_of_z_and_s_is_taken_out(ambiguous, penalty) -> None:
    adata, drawn = ambiguous
    model = make_ambiguous(adata, penalty)
    before = gaussian_information(*drawn)
    after = gaussian_information(*latents(model, **DRAWS))
    print(f"{penalty.name}: {before:.3f} -> {after:.3f} nats")
    assert before > 0.4
    assert after < 0.5 * before
    recorded = model.history[f"{penalty.name}_train"].to_numpy().ravel()
    assert len(recorded) == DRAWS["n_epochs"]
    assert recorded[-10:].mean() < 0.3


def condition_in(latent: np.ndarray) -> float:
    """Share of the variance of the condition that is linear in a latent."""
    return LinearRegression().fit(latent, TREATED).score(latent, TREATED)


def test_mmd_keeps_the_condition_out_of_z(ambiguous) -> None:
    adata, (without, _) = ambiguous
    z, _ = latents(make_ambiguous(adata, MMD(30.0)), **DRAWS)
    print(f"MMD on z, condition in z: {condition_in(without):.3f} -> {condition_in(z):.3f}")
    assert condition_in(without) > 0.35
    assert condition_in(z) < 0.5 * condition_in(without)


@pytest.fixture(scope="module")
def crowded():
    """Counts of which controls vary in more ways than z has room for, and the s inferred."""
    rng = np.random.default_rng(0)
    factors = np.hstack([rng.standard_normal((2 * N_CELLS, 4)), 2.0 * TREATED[:, None]])
    adata = counts(factors @ rng.normal(0, 0.5, (5, N_GENES)))
    return adata, latents(make(adata, 2))[1]


@pytest.mark.parametrize(
    "penalty", [Wasserstein(5.0), NarrowSalient(1.0), MMD(100.0, "s")], ids=lambda p: p.name
)
def test_s_of_background_cells_is_pinned_to_zero(crowded, penalty) -> None:
    adata, without = crowded
    _, s = latents(make(adata, 2, penalty))

    def share(of: np.ndarray) -> float:
        squares = (of**2).sum(1)
        return squares[~TREATED].mean() / squares[TREATED].mean()

    print(
        f"{penalty.name}, square of s, background / target: {share(without):.3f} -> {share(s):.3f}"
    )
    assert share(s) < 0.5 * share(without)


def test_s_of_target_cells_is_pinned_at_first_and_then_let_go(crowded) -> None:
    adata, without = crowded
    _, held = latents(make(adata, 2, LateSalient(30.0, n_steps=10**6)))
    _, let_go = latents(make(adata, 2, LateSalient(30.0, n_steps=100)))  # of 300

    def size(of: np.ndarray) -> float:
        return (of[TREATED] ** 2).sum(1).mean()

    print(f"square of s: {size(without):.2f}, held {size(held):.4f}, let go {size(let_go):.2f}")
    assert size(held) < 0.05 * size(without)
    assert size(let_go) > 0.5 * size(without)


def error(latent: np.ndarray) -> float:
    """How often background and target cells are mistaken for each other, linearly; 1/2: chance."""
    return 1 - cross_val_score(LogisticRegression(), latent, TREATED, cv=5).mean()


def test_the_classifier_sets_populations_apart_in_s() -> None:
    settings = SimulationSettings(n_background=N_CELLS, n_target=N_CELLS, n_genes=N_GENES)
    adata = simulate(settings, seed=3)
    _, without = latents(make(adata, 5))
    _, s = latents(make(adata, 5, SalientClassifier(10.0, 5)))
    print(f"classifier, error from s: {error(without):.3f} -> {error(s):.3f}")
    assert error(s) < 0.5 * error(without)
