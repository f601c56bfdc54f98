"""Compare the means of two groups of cells, gene by gene, within strata."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.analysis.means.donors import (
    Donors,
    TooFewDonorsError,
    donors_tested,
    untested,
)
from pyro_contrastive.analysis.means.group_sums import (
    DonorSums,
    GroupSums,
    donor_sums,
    group_sums,
)
from pyro_contrastive.analysis.means.log_ratio import fit_log_ratio, half_width, score_statistic
from pyro_contrastive.analysis.means.results import (
    LOG_2,
    reason_not_tested,
    result_table,
    with_fdr,
)
from pyro_contrastive.analysis.means.settings import MeansSettings
from pyro_contrastive.observed.matrix import Matrix
from pyro_contrastive.observed.source import Observed

__all__ = ["compare_means"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
Test = Callable[[Codes], pd.DataFrame]


def compare_means(
    x: Matrix | Observed,
    sizes: Array,
    strata: Codes,
    side: NDArray[np.bool_],
    names: pd.Index,
    settings: MeansSettings,
    donors: Donors | None = None,
) -> pd.DataFrame:
    """Test every gene; see :meth:`~pyro_contrastive.ContrastiveVI.differential_expression`.

    Parameters
    ----------
    x
        Counts, ``[cells, genes]``.
    sizes
        Library size or size factor of each cell, positive, ``[cells]``.
    strata
        Stratum of each cell, from 0, ``[cells]``.
    side
        Which cells are in the group whose change is asked for; the others are compared with.
    names
        Names of the strata.
    settings
        Settings of the test.
    donors
        The donor of each cell: the unit of the test. Default: cells are the unit.

    Returns
    -------
    A row per gene (and stratum), in the order of the genes, without their names.

    Raises
    ------
    ValueError
        If no stratum has enough cells of both groups, or there are too few donors.
    """
    sizes = sizes / sizes.mean()
    if donors is None:
        shared, tested = _test_of_cells(group_sums(x, sizes, strata, side), settings)
    else:
        by_donor = donor_sums(x, sizes, strata, side, donors.codes)
        shared, tested = _test_of_donors(by_donor, donors, settings)
    if not len(shared):
        msg = (
            f"No stratum has at least {settings.fewest_cells} cells of both groups, so that "
            "nothing can be compared within strata: a batch or stratum that holds one group alone "
            "cannot be told apart from it. Use fewer strata=, or another column."
        )
        raise ValueError(msg)
    if not settings.by_stratum:
        return with_fdr(tested(shared), settings)
    tables = [tested(np.array([k])) for k in shared]
    for k, table in zip(shared, tables, strict=True):
        table.insert(0, "stratum", names[k])
    return with_fdr(pd.concat(tables), settings)


def _test_of_cells(sums: GroupSums, settings: MeansSettings) -> tuple[Codes, Test]:
    """Return the strata with cells of both groups, and the test over some of them."""
    shared = np.flatnonzero(sums.shared(settings.fewest_cells))
    return shared, lambda strata: _tested(sums.of(strata), settings)


def _test_of_donors(sums: DonorSums, donors: Donors, settings: MeansSettings) -> tuple[Codes, Test]:
    """Return the same with donors as the unit; a stratum by itself may have too few of them."""
    shared = sums.shared(settings.fewest_cells)
    refused: list[Codes] = []

    def tested(strata: Codes) -> pd.DataFrame:
        some = sums.of(np.isin(sums.stratum, strata))
        try:
            return donors_tested(some, donors, settings)
        except TooFewDonorsError:
            refused.append(strata)
            if not settings.by_stratum or len(refused) == len(shared):
                raise
            return untested(some)

    return shared, tested


def _tested(sums: GroupSums, settings: MeansSettings) -> pd.DataFrame:
    """Test every gene over some strata, with cells as replicates."""
    fit = fit_log_ratio(sums)
    reason = reason_not_tested(sums.counts.sum((0, 1)), settings.fewest_counts)
    quantile = half_width(sums, settings.interval)
    means = sums.counts.sum(0) / sums.sizes.sum(0)[:, None]
    others = {
        "mean1": means[1],
        "mean2": means[0],
        "n_cells1": sums.n_cells[:, 1].sum(),
        "n_cells2": sums.n_cells[:, 0].sum(),
        "n_strata": len(sums.n_cells),
    }
    p_value = _p_values(sums, fit.value, settings)
    return result_table(fit.value, fit.standard_error, quantile, p_value, reason, others)


def _p_values(sums: GroupSums, estimate: Array, settings: MeansSettings) -> Array:
    """Two-sided p-values of a log ratio within the threshold, from the score at its edge."""
    from scipy.stats import norm  # noqa: PLC0415  # slow to import

    edge = settings.lfc_threshold * LOG_2
    if edge == 0:
        return np.asarray(2 * norm.sf(np.abs(score_statistic(sums))))
    above = norm.sf(score_statistic(sums, edge))
    below = norm.sf(-score_statistic(sums, -edge))
    beyond = np.where(estimate > 0, above, below)
    return np.where(np.abs(estimate) > edge, np.minimum(2 * beyond, 1.0), 1.0)
