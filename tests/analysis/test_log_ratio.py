"""The log ratio of means, against statsmodels' Poisson regression with sandwich errors."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.sparse import csr_matrix
from scipy.special import expit
from scipy.stats import kstest, norm

from pyro_contrastive.analysis.means.group_sums import group_sums
from pyro_contrastive.analysis.means.log_ratio import fit_log_ratio, score_statistic


def made(seed=0, n=400, n_genes=12, n_strata=3, effect=0.0, dispersion=0.5, mean=2.0):
    rng = np.random.default_rng(seed)
    strata = rng.integers(0, n_strata, n)
    side = rng.random(n) < expit(strata - 1.0)  # strata differ in composition
    sizes = rng.lognormal(0.0, 0.5, n) * np.where(side, 0.5, 1.0)
    base = rng.normal(np.log(mean), 0.5, (n_strata, n_genes))
    rate = sizes[:, None] * np.exp(base[strata] + effect * side[:, None])
    noise = rng.gamma(1 / dispersion, dispersion, rate.shape) if dispersion else 1.0
    return rng.poisson(rate * noise).astype(float), sizes, strata, side


def test_sums_by_stratum_and_side_are_those_of_the_cells() -> None:
    x, sizes, strata, side = made(n=30, n_genes=4)
    found, sparse = (group_sums(m, sizes, strata, side) for m in (x, csr_matrix(x)))
    for k in range(3):
        for c in (0, 1):
            cells = (strata == k) & (side == c)
            np.testing.assert_allclose(found.counts[k, c], x[cells].sum(0))
            np.testing.assert_allclose(found.squares[k, c], (x[cells] ** 2).sum(0))
            np.testing.assert_allclose(found.products[k, c], sizes[cells] @ x[cells])
            np.testing.assert_allclose(found.sizes[k, c], sizes[cells].sum())
            np.testing.assert_allclose(found.squared_sizes[k, c], (sizes[cells] ** 2).sum())
            assert found.n_cells[k, c] == cells.sum()
    for ours, theirs in zip(vars(found).values(), vars(sparse).values(), strict=True):
        np.testing.assert_allclose(ours, theirs)
    assert found.shared(1).tolist() == [True] * 3


@pytest.mark.parametrize("effect", [0.0, 1.2])
def test_estimate_and_error_are_those_of_a_poisson_regression(effect) -> None:
    x, sizes, strata, side = made(n=3000, effect=effect)
    found = fit_log_ratio(group_sums(x, sizes, strata, side))
    design = np.column_stack([strata == k for k in range(3)] + [side]).astype(float)
    for gene in range(x.shape[1]):
        family = sm.families.Poisson()
        fit = sm.GLM(x[:, gene], design, family, offset=np.log(sizes)).fit(cov_type="HC0")
        # The penalty and the correction for few cells vanish as cells become many.
        assert found.value[gene] == pytest.approx(fit.params[-1], abs=1e-3)
        assert found.standard_error[gene] == pytest.approx(fit.bse[-1], rel=3e-3)


def test_a_side_without_counts_has_a_finite_ratio_and_a_gene_without_counts_none() -> None:
    x, sizes, strata, side = made(n=200, n_genes=3)
    x[side, 0] = 0.0
    x[:, 1] = 0.0
    sums = group_sums(x, sizes, strata, side)
    found, z = fit_log_ratio(sums), score_statistic(sums)
    assert -12 < found.value[0] < -3
    assert z[0] < -5
    assert np.isnan([found.value[1], found.standard_error[1], z[1]]).all()


@pytest.mark.parametrize(("mean", "dispersion"), [(2.0, 0.5), (2.0, 0.0), (0.05, 1.0)])
def test_the_score_statistic_is_standard_normal_where_nothing_differs(mean, dispersion) -> None:
    x, sizes, strata, side = made(1, n=1000, n_genes=1500, mean=mean, dispersion=dispersion)
    z = score_statistic(group_sums(x, sizes, strata, side))
    assert kstest(z, norm.cdf).pvalue > 0.001
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.05, abs=0.016)
    assert (np.abs(z) > 2.81).mean() == pytest.approx(0.005, abs=0.006)


def test_the_score_at_the_true_ratio_is_standard_normal_and_grows_away_from_it() -> None:
    x, sizes, strata, side = made(2, n=1000, n_genes=800, effect=0.7)
    sums = group_sums(x, sizes, strata, side)
    z = score_statistic(sums, 0.7)
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.05, abs=0.025)
    assert score_statistic(sums).mean() > 4
    assert score_statistic(sums, 1.4).mean() < -4


def test_intervals_cover() -> None:
    x, sizes, strata, side = made(3, n=600, n_genes=1000, effect=-0.5)
    found = fit_log_ratio(group_sums(x, sizes, strata, side))
    inside = np.abs(found.value + 0.5) < 1.96 * found.standard_error
    assert inside.mean() == pytest.approx(0.95, abs=0.025)
    assert found.value.mean() == pytest.approx(-0.5, abs=0.02)
