"""The test of means with donors as the unit: cells of one donor are not replicates."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.analysis.means.donor_fit import fit_donors
from pyro_contrastive.analysis.means.donor_rates import DonorRates, donor_rates
from pyro_contrastive.analysis.means.group_sums import DonorSums
from pyro_contrastive.analysis.means.pseudobulk import pydeseq2_table
from pyro_contrastive.analysis.means.results import LOG_2, reason_not_tested, result_table
from pyro_contrastive.analysis.means.settings import MeansSettings

__all__ = ["FEWEST_DONORS", "Donors", "TooFewDonorsError", "donors_tested", "untested"]

logger = logging.getLogger(__name__)
Codes = NDArray[np.int64]
FEWEST_DONORS = 2
"""Donors of each side, or pairs, from which it can be said how much donors differ."""


class TooFewDonorsError(ValueError):
    """A side has too few donors to say how much donors differ."""


@dataclass(frozen=True)
class Donors:
    """Which donor each cell is from.

    Parameters
    ----------
    codes
        From 0, ``[cells]``.
    names
        Names of the donors.
    key
        The column they are from.
    """

    codes: Codes
    names: pd.Index
    key: str


def donors_tested(sums: DonorSums, donors: Donors, settings: MeansSettings) -> pd.DataFrame:
    """Test every gene, with donors as the unit.

    Parameters
    ----------
    sums
        Sums over the cells of donors, by stratum and side.
    donors
        Names the donors in messages.
    settings
        Settings of the test.

    Raises
    ------
    TooFewDonorsError
        If there are fewer than two donors on a side, or all are on both and there are fewer than
        two.
    ValueError
        If the effects of batches leave nothing to compare.
    """
    used = sums.comparable(settings.fewest_cells)
    _check_numbers(used, donors, settings)
    _say_left_out(sums, used, donors, settings)
    rates = donor_rates(used)
    reason = reason_not_tested(rates.observed.sum(0), settings.fewest_counts)
    others = _numbers(used)
    if settings.donor_test == "pydeseq2":
        return pydeseq2_table(rates, reason, settings, others)
    return _moderated(rates, reason, settings, others)


def untested(sums: DonorSums) -> pd.DataFrame:
    """Return the table of a stratum that too few donors have cells in."""
    nothing = np.full(sums.counts.shape[1], np.nan)
    reason = np.full(len(nothing), f"fewer than {FEWEST_DONORS} donors of a group", dtype=object)
    others = _numbers(sums)
    return result_table(nothing, nothing, np.nan, nothing, reason, others)


def _moderated(
    rates: DonorRates,
    reason: NDArray[np.object_],
    settings: MeansSettings,
    others: dict[str, object],
) -> pd.DataFrame:
    """Moderated t-tests of the donors' log rates."""
    from scipy.stats import t  # noqa: PLC0415  # slow to import

    fit = fit_donors(rates, reason == "")
    beyond = np.abs(fit.value) - settings.lfc_threshold * LOG_2
    with np.errstate(invalid="ignore", divide="ignore"):
        p_value = np.minimum(2 * t.sf(beyond / fit.standard_error, fit.df), 1.0)
    quantile = float(t.ppf((1 + settings.interval) / 2, fit.df))
    return result_table(fit.value, fit.standard_error, quantile, p_value, reason, others)


def _numbers(used: DonorSums) -> dict[str, object]:
    """Means of the sides, and numbers of the cells, strata and donors that were used."""
    found: dict[str, object] = {}
    for name, side in (("1", 1), ("2", 0)):
        on = used.side == side
        found[f"mean{name}"] = used.counts[on].sum(0) / used.sizes[on].sum()
    for name, side in (("1", 1), ("2", 0)):
        found[f"n_cells{name}"] = int(used.n_cells[used.side == side].sum())
    found["n_strata"] = len(np.unique(used.stratum))
    for name, side in (("1", 1), ("2", 0)):
        found[f"n_donors{name}"] = len(np.unique(used.donor[used.side == side]))
    return found


def _check_numbers(used: DonorSums, donors: Donors, settings: MeansSettings) -> None:
    """Refuse too few donors."""
    sides = [np.unique(used.donor[used.side == side]) for side in (1, 0)]
    if min(map(len, sides)) >= FEWEST_DONORS:
        return
    counts = " and ".join(
        f"{len(of_side)} in group {group}"
        + (f" ({donors.names[of_side[0]]})" if len(of_side) == 1 else "")
        for group, of_side in zip((1, 2), sides, strict=True)
    )
    msg = (
        f"There are too few donors (sample_key={donors.key!r}) to compare: {counts}, with at least "
        f"{settings.fewest_cells} cells each in strata that both groups share. At least "
        f"{FEWEST_DONORS} on each side are needed, because cells of one donor are not replicates: "
        "with a single one, nothing says how much donors differ, and any difference between the "
        "groups may be one between donors. To compare the cells of these very donors, and claim "
        "nothing about others, take cells as replicates: sample_key=False."
    )
    raise TooFewDonorsError(msg)


def _say_left_out(
    sums: DonorSums, used: DonorSums, donors: Donors, settings: MeansSettings
) -> None:
    """Log the donors that are not used, or on one side only."""
    there, left = (set(zip(s.donor, s.side, strict=True)) for s in (sums, used))
    lost = sorted({str(donors.names[donor]) for donor, _ in there - left})
    if lost:
        logger.warning(
            "%d %s fewer than %d cells of a group in strata that both groups share, and no part "
            "in the test of this group: %s.",
            len(lost),
            "donor has" if len(lost) == 1 else "donors have",
            settings.fewest_cells,
            ", ".join(lost),
        )
