"""Variances squeezed over genes, against the distribution they are assumed to have."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import polygamma
from scipy.stats import f, kstest, t

from pyro_contrastive.analysis.means.moderation import inverse_trigamma, squeeze


@pytest.mark.parametrize("value", [1e-3, 0.1, 1.0, 20.0, 1e4])
def test_inverse_trigamma(value) -> None:
    root = brentq(lambda x: polygamma(1, x) - value, 1e-4, 1e4, xtol=1e-12)
    assert inverse_trigamma(value) == pytest.approx(root, rel=1e-6)
    assert inverse_trigamma(1e-8) == pytest.approx(1e8)  # trigamma(x) is 1 / x for large x
    assert inverse_trigamma(1e8) == pytest.approx(1e-4)  # and 1 / x^2 for small


def made(n=20000, df=4, prior_df=6.0, prior_variance=0.5):
    rng = np.random.default_rng(0)
    true = prior_df * prior_variance / rng.chisquare(prior_df, n)
    return true, true * rng.chisquare(df, n) / df


def test_the_prior_of_simulated_variances_is_found() -> None:
    true, variance = made()
    found = squeeze(variance, 4)
    assert found.prior_df == pytest.approx(6.0, rel=0.1)
    assert found.prior_variance == pytest.approx(0.5, rel=0.03)
    assert found.df == pytest.approx(4 + found.prior_df)
    by_hand = (found.prior_df * found.prior_variance + 4 * variance) / (found.prior_df + 4)
    np.testing.assert_allclose(found.variance, by_hand)
    squeezed, plain = (np.log(v / true) for v in (found.variance, variance))
    assert (squeezed**2).mean() < 0.5 * (plain**2).mean()


def test_the_moments_of_log_variances_are_those_of_the_fitted_f_distribution() -> None:
    _, variance = made()
    found = squeeze(variance, 4)
    fitted = f(4, found.prior_df, scale=found.prior_variance)
    logs = np.log(fitted.ppf((np.arange(200000) + 0.5) / 200000))
    assert np.log(variance).mean() == pytest.approx(logs.mean(), abs=1e-3)
    assert np.log(variance).var() == pytest.approx(logs.var(), rel=2e-3)


def test_the_moderated_t_has_the_degrees_of_freedom_it_says() -> None:
    true, variance = made(n=5000, df=2)
    estimate = np.random.default_rng(1).normal(0, np.sqrt(true / 3))
    found = squeeze(variance, 2)
    p = 2 * t.sf(np.abs(estimate) / np.sqrt(found.variance / 3), found.df)
    assert kstest(p, "uniform").pvalue > 0.01


def test_equal_variances_are_pooled_and_few_are_left_alone() -> None:
    found = squeeze(np.full(50, 2.0), 3)
    assert found.prior_df == np.inf
    assert found.df == 150
    assert np.ptp(found.variance) == 0
    alone = squeeze(np.array([1.0, 2.0]), 3)
    assert alone.df == 3
    assert alone.variance.tolist() == [1.0, 2.0]
