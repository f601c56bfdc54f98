"""Pareto smoothed importance sampling, against ArviZ and against tails of known shape."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.stats

from pyro_contrastive import ContrastiveVI, compare_models
from pyro_contrastive.analysis.pareto import k_threshold, smooth
from pyro_contrastive.data import load_kang


def arvizs_psislw(log_weights):
    """Smoothed log weights, not normalised, and k, as ArviZ has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0 announces its next version, once a day
        arviz = pytest.importorskip("arviz")
    if hasattr(arviz, "psislw"):
        return arviz.psislw(log_weights, normalize=False)
    from arviz_stats.base import array_stats  # ArviZ 1

    smoothed, k = array_stats.psislw(-log_weights)  # which are log-likelihoods there
    # Undo the normalisation: smoothing leaves the smallest weight as it is.
    change = log_weights.min(-1, keepdims=True) - smoothed.min(-1, keepdims=True)
    return smoothed + change, k


# Of these numbers a fifth, or three times the root, is whole: ArviZ 1 rounds down where the paper
# and ArviZ 0 round up.
@pytest.mark.parametrize("n_draws", [50, 400, 2025])
def test_it_is_what_arviz_computes(n_draws: int) -> None:
    rng = np.random.default_rng(0)
    scales = (0.01, 0.3, 1.0, 3.0, 30.0)
    log_weights = np.concatenate([rng.normal(-1500, s, (4, n_draws)) for s in scales])
    smoothed = smooth(log_weights)
    expected, k = arvizs_psislw(log_weights)
    np.testing.assert_allclose(smoothed.k, k, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(smoothed.log_weights, expected, atol=1e-8)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_the_shape_of_a_pareto_tail_is_found(shape: float) -> None:
    weights = scipy.stats.genpareto(shape).rvs((20, 20_000), random_state=0)
    assert np.mean(smooth(np.log(weights + 1.0)).k) == pytest.approx(shape, abs=0.07)


def test_smoothing_changes_the_largest_weights_only_and_exceeds_none() -> None:
    log_weights = np.random.default_rng(0).normal(0, 2, (3, 1000))
    smoothed = smooth(log_weights).log_weights
    n_tail = 95  # 3 times the square root of 1,000
    for before, after in zip(log_weights, smoothed, strict=True):
        order = before.argsort()
        np.testing.assert_allclose(after[order[:-n_tail]], before[order[:-n_tail]], rtol=1e-12)
        assert not np.allclose(after[order[-n_tail:]], before[order[-n_tail:]])
        assert after.max() <= before.max() + 1e-12
        assert (np.diff(after[order]) >= -1e-12).all()


def test_equal_weights_have_no_tail() -> None:
    smoothed = smooth(np.full((2, 100), -3.0))
    assert smoothed.k.tolist() == [0.0, 0.0]
    np.testing.assert_allclose(smoothed.log_mean, -3.0)


def test_tied_weights_cannot_be_judged() -> None:
    log_weights = np.zeros((1, 100))
    log_weights[0, :2] = 5.0
    assert smooth(log_weights).k[0] == np.inf


def test_threshold_by_hand() -> None:
    assert k_threshold(100) == pytest.approx(0.5)
    assert k_threshold(1000) == pytest.approx(2 / 3)
    assert k_threshold(10**6) == 0.7


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (np.zeros(100), "must be"),
        (np.zeros((2, 10)), "at least 25 draws"),
        (np.where(np.eye(2, 100) > 0, np.nan, 0.0), "2 cells have importance weights"),
    ],
)
def test_what_cannot_be_smoothed_is_refused(log_weights: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smooth(log_weights)


def test_too_few_draws_are_refused_by_their_argument_before_any_is_made() -> None:
    adata = load_kang()[::50].copy()
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    model = ContrastiveVI(adata, n_hidden=4, n_background_latent=2, n_salient_latent=2)
    for use in (
        lambda: model.pareto_k(n_samples=24),
        lambda: model.posterior_accuracy(indices=[0], n_samples=1),
        lambda: compare_models({"a": model, "b": model}, n_samples=0),
    ):
        with pytest.raises(ValueError, match="n_samples must be at least 25, not"):
            use()
