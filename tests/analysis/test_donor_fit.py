"""Donors as the unit of a test of means, against t-tests, mixed models and regressions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from pyro_contrastive.analysis.means.compare import compare_means
from pyro_contrastive.analysis.means.donor_fit import design_of, fit_donors
from pyro_contrastive.analysis.means.donor_rates import DonorRates, donor_rates
from pyro_contrastive.analysis.means.donors import Donors
from pyro_contrastive.analysis.means.group_sums import donor_sums
from pyro_contrastive.analysis.means.pseudobulk import standardised_counts
from pyro_contrastive.analysis.means.settings import MeansSettings

ONE_GENE = np.array([True])


def rates_of(value, donor, side, variance=0.0, component=None) -> DonorRates:
    """Log rates of one gene."""
    value = np.asarray(value, dtype=float)[:, None]
    component = np.zeros(len(value), dtype=int) if component is None else np.asarray(component)
    variance = np.broadcast_to(np.asarray(variance, dtype=float), len(value))[:, None]
    nothing = np.zeros_like(value)
    sizes = np.ones(len(value))
    donor, side = np.asarray(donor), np.asarray(side)
    return DonorRates(donor, side, component, value, variance, nothing, nothing, sizes)


def p_of(fit) -> float:
    return float(2 * stats.t.sf(abs(fit.value[0]) / fit.standard_error[0], fit.df))


def test_designs_are_told_apart() -> None:
    sides = np.array([0, 0, 1, 1])
    assert design_of(np.array([0, 1, 2, 3]), sides) == "nested"
    assert design_of(np.array([0, 1, 1, 0]), sides) == "paired"
    assert design_of(np.array([0, 1, 1, 2]), sides) == "mixed"


def test_one_gene_of_equal_precision_is_students_t_test() -> None:
    value = np.array([0.1, 0.5, 0.2, 0.9, 1.4, 0.8, 1.1])
    nested = fit_donors(rates_of(value, np.arange(7), [0, 0, 0, 1, 1, 1, 1]), ONE_GENE)
    expected = stats.ttest_ind(value[3:], value[:3])
    assert nested.value[0] == pytest.approx(value[3:].mean() - value[:3].mean())
    assert (nested.df, p_of(nested)) == (5, pytest.approx(expected.pvalue))
    paired = fit_donors(rates_of(value[:6], [0, 1, 2, 2, 1, 0], [0, 0, 0, 1, 1, 1]), ONE_GENE)
    expected = stats.ttest_rel(value[[5, 4, 3]], value[[0, 1, 2]])
    assert (paired.df, p_of(paired)) == (2, pytest.approx(expected.pvalue))


def test_components_that_cannot_be_compared_are_blocks() -> None:
    rng = np.random.default_rng(0)
    value, side, batch = rng.normal(size=8), np.resize([0, 1], 8), np.repeat([0, 1], 4)
    found = fit_donors(rates_of(value + 9 * batch, np.arange(8), side, 0.0, batch), ONE_GENE)
    design = np.column_stack([side, batch == 0, batch == 1]).astype(float)
    fit = sm.OLS(value, design).fit()
    assert found.value[0] == pytest.approx(fit.params[0])
    assert (found.df, p_of(found)) == (5, pytest.approx(fit.pvalues[0]))
    with pytest.raises(ValueError, match="cannot be told from the batches"):
        fit_donors(rates_of(value, np.arange(8), side, 0.0, side), ONE_GENE)
    few = rates_of(value[:3], [0, 1, 2], [0, 1, 1], 0.0, [0, 0, 1])
    with pytest.raises(ValueError, match="nothing is left to say how much donors differ"):
        fit_donors(few, ONE_GENE)


def test_donors_of_few_cells_count_less() -> None:
    rng = np.random.default_rng(0)
    side, v = np.resize([0, 1], 6), np.array([1, 9, 2, 30, 4, 5.0])
    many = np.repeat(v[:, None], 500, 1)  # no variance between donors: all is from sampling cells
    values, zeros = rng.normal(size=many.shape) * np.sqrt(many), np.zeros_like(many)
    rates = DonorRates(np.arange(6), side, zeros[:, 0], values, many, zeros, zeros, zeros[:, 0])
    found = fit_donors(rates, np.ones(500, bool))
    exact = sm.WLS(values[:, 0], sm.add_constant(side), 1 / v).fit()
    assert found.value[0] == pytest.approx(exact.params[1], abs=0.1)
    assert found.value.std() < 0.8 * (values[side == 1].mean(0) - values[side == 0].mean(0)).std()


def test_mixed_designs_are_a_mixed_model() -> None:
    rng = np.random.default_rng(3)
    donor = np.concatenate([np.arange(30), np.arange(10, 40)])
    side = np.repeat([0, 1], 30)  # donors 10 to 29 are on both
    value = rng.normal(0, 1.0, 40)[donor] + rng.normal(0, 0.6, 60) + 0.5 * side
    found = fit_donors(rates_of(value, donor, side), ONE_GENE)
    expected = sm.MixedLM(value, sm.add_constant(side.astype(float)), donor).fit(reml=True)
    assert found.value[0] == pytest.approx(expected.params[1], abs=0.01)
    assert found.standard_error[0] == pytest.approx(expected.bse[1], rel=0.03)
    plain = stats.ttest_ind(value[side == 1], value[side == 0])
    assert p_of(found) < 0.1 * plain.pvalue


def cells_of(n_donors=4, n_cells=2400, n_genes=6, donor_sd=0.3, effect=0.0, seed=0, paired=False):
    """Counts of donors whose cells differ in composition."""
    rng = np.random.default_rng(seed)
    donor = rng.integers(0, 2 * n_donors, n_cells)
    side = rng.random(n_cells) < 0.5 if paired else donor >= n_donors
    share = rng.uniform(0.2, 0.8, 2 * n_donors)
    strata = (rng.random(n_cells) < share[donor]).astype(int)
    sizes = rng.lognormal(0, 0.4, n_cells) * np.where(side, 0.6, 1.0)
    base = rng.normal(np.log(3.0), 0.5, (2, n_genes))
    level = rng.normal(0, donor_sd, (2 * n_donors, n_genes))[donor]
    rate = sizes[:, None] * np.exp(base[strata] + level + effect * side[:, None])
    x = rng.poisson(rng.gamma(2.0, rate / 2.0)).astype(float)
    return x, sizes, strata, side, donor


def test_sums_are_those_of_the_cells() -> None:
    x, sizes, strata, side, donor = cells_of(n_cells=200)
    sums = donor_sums(x, sizes, strata, side, donor)
    for group in range(len(sums.donor)):
        cells = (donor == sums.donor[group]) & (strata == sums.stratum[group])
        cells &= side == sums.side[group]
        np.testing.assert_allclose(sums.counts[group], x[cells].sum(0))
        np.testing.assert_allclose(sums.squares[group], (x[cells] ** 2).sum(0))
        np.testing.assert_allclose(sums.products[group], sizes[cells] @ x[cells])
        assert sums.n_cells[group] == cells.sum()
    assert sums.n_cells.sum() == 200


def test_log_rates_are_the_effects_of_a_poisson_regression() -> None:
    x, sizes, strata, side, donor = cells_of()
    rates = donor_rates(donor_sums(x, sizes, strata, side, donor))
    design = np.column_stack([pd.get_dummies(donor), strata]).astype(float)
    for gene in range(x.shape[1]):
        fit = sm.GLM(x[:, gene], design, sm.families.Poisson(), offset=np.log(sizes)).fit()
        expected = fit.params[:8] - fit.params[:8].mean()
        found = rates.value[:, gene] - rates.value[:, gene].mean()
        np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize("mean", [0.3, 1.0, 3.0, 30.0])
def test_log_rates_of_unlike_depth_are_alike_where_nothing_differs(mean) -> None:
    rng = np.random.default_rng(0)
    depth = np.array([1.0, 0.4, 1.0, 0.4])
    n_genes, n_cells = 4000, 50
    donor, side = np.repeat(np.arange(4), n_cells), np.repeat([0, 1, 0, 1], n_cells)
    sizes = np.repeat(depth, n_cells)
    x = rng.poisson(sizes[:, None] * mean / n_cells, (4 * n_cells, n_genes)).astype(float)
    sums = donor_sums(x, sizes, np.zeros(len(donor), int), side == 1, donor)
    value = donor_rates(sums).value
    difference = value[side[::n_cells] == 1] - value[side[::n_cells] == 0]
    assert abs(difference.mean()) < 0.25 * difference.std()


def table_of(made, **settings: Any) -> pd.DataFrame:
    x, sizes, strata, side, donor = made
    names = pd.Index([f"d{i}" for i in range(donor.max() + 1)])
    strata_names = pd.Index(["a", "b"])
    return compare_means(
        x, sizes, strata, side, strata_names, MeansSettings(**settings), Donors(donor, names, "who")
    )


@pytest.mark.parametrize("paired", [False, True])
def test_with_many_donors_it_is_a_regression_with_clustered_errors(paired) -> None:
    made = cells_of(n_donors=40, n_cells=12000, effect=0.4, paired=paired)
    x, sizes, strata, side, donor = made
    table = table_of(made)
    blocks = pd.get_dummies(donor) if paired else np.ones((len(side), 1))
    design = np.column_stack([side, strata, blocks]).astype(float)
    for gene in range(3):
        family = sm.families.Poisson()
        fit = sm.GLM(x[:, gene], design, family, offset=np.log(sizes)).fit(
            cov_type="cluster", cov_kwds={"groups": donor}
        )
        assert table["lfc"][gene] * np.log(2) == pytest.approx(fit.params[0], abs=0.05)
        assert table["lfc_se"][gene] * np.log(2) == pytest.approx(fit.bse[0], rel=0.25)


@pytest.mark.parametrize(("paired", "n_donors"), [(False, 2), (False, 3), (False, 6), (True, 2)])
def test_p_values_are_uniform_where_only_donors_differ(paired, n_donors) -> None:
    made = cells_of(n_donors, 600 * n_donors, 1000, seed=n_donors, paired=paired)
    table = table_of(made)
    assert (table["p_value"] < 0.05).mean() == pytest.approx(0.05, abs=0.025)
    assert (table["p_value"] < 0.005).mean() < 0.015
    assert not table["is_de_fdr_0.05"].any()
    covered = (table["lower"] < 0) & (table["upper"] > 0)
    assert covered.mean() == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize("paired", [False, True])
def test_pydeseq2_agrees(paired) -> None:
    pytest.importorskip("pydeseq2")
    made = cells_of(3, 1800, 120, paired=paired)
    rng = np.random.default_rng(1)
    made[0][:, :40] = rng.poisson(made[0][:, :40] * np.where(made[3], 2.5, 1.0)[:, None])
    ours, theirs = (table_of(made, donor_test=test) for test in ("moderated_t", "pydeseq2"))
    assert list(ours.columns) == list(theirs.columns)
    assert np.corrcoef(ours["lfc"], theirs["lfc"])[0, 1] > 0.99
    assert np.abs(ours["lfc"] - theirs["lfc"]).max() < 0.3
    assert stats.spearmanr(ours["p_value"], theirs["p_value"])[0] > 0.9
    assert theirs["is_de_fdr_0.05"][:40].mean() > 0.5
    # Wald's test: change, error and p-value belong together, on one scale.
    wald = 2 * stats.norm.sf(np.abs(theirs["lfc"] / theirs["lfc_se"]))
    np.testing.assert_allclose(theirs["p_value"], wald, rtol=1e-6)
    half = stats.norm.ppf(0.975) * theirs["lfc_se"]
    np.testing.assert_allclose(theirs["upper"] - theirs["lfc"], half, rtol=1e-6)
    within, beyond = (
        table_of(made, donor_test="pydeseq2", lfc_threshold=edge)["p_value"] for edge in (0.2, 0.0)
    )
    assert (within >= beyond - 1e-9).all()


def test_counts_are_standardised_to_the_average_composition_of_cells() -> None:
    # Two samples of 100 and 300 cells' size; the average composition expects a quarter and three
    # quarters of each gene's counts in them. Of the last gene nothing is expected.
    expected = np.array([[0.3, 20.0, 0.0], [0.3, 20.0, 0.0]])
    none = np.zeros((2, 3))
    codes = np.zeros(2, dtype=np.int64)
    observed = np.array([[4.0, 40.0, 0.0], [6.0, 60.0, 0.0]])
    sizes = np.array([100.0, 300.0])
    rates = DonorRates(codes, codes, codes, none, none, observed, expected, sizes)
    # Factors of 2 (.3 instead of .15, 20 instead of 10) and of 2 / 3.
    assert standardised_counts(rates).tolist() == [[2, 20, 0], [9, 90, 0]]


def test_donors_of_few_cells_and_strata_of_one_side_are_left_out() -> None:
    x, sizes, strata, side, donor = cells_of(n_donors=3, n_cells=1200)
    strata = np.where(side & (strata == 1), 2, strata)  # both sides have cells of stratum 0 alone
    scarce = np.flatnonzero((donor == 5) & (strata == 0))[4:]
    kept = np.delete(np.arange(1200), scarce)
    sums = donor_sums(x[kept], sizes[kept], strata[kept], side[kept], donor[kept])
    assert sums.shared(5).tolist() == [0]
    used = sums.comparable(5)
    assert set(used.stratum) == {0}
    assert set(used.donor) == {0, 1, 2, 3, 4}
