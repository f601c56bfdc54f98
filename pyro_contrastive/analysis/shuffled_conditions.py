"""Conditions shuffled among cells, or among donors, as if the treatment did nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["shuffled_conditions"]

Codes = NDArray[np.int64]
TRIES = 100


def shuffled_conditions(
    condition: Codes, strata: Codes, donors: Codes | None, rng: np.random.Generator
) -> Codes:
    """Shuffle the condition within strata, with donors as the unit where that is possible.

    Parameters
    ----------
    condition
        Code per cell, ``[cells]``.
    strata
        Code of the stratum of each cell, such as its batch and type. Conditions are shuffled among
        the cells of a stratum, so that its share of treated cells stays as it is.
    donors
        Code of the donor of each cell, if known. Cells of a donor that has several conditions are
        shuffled among themselves. Donors with one condition exchange these as wholes, so that what
        distinguishes donors still distinguishes conditions.
    rng
        Source of the shuffles.

    Raises
    ------
    ValueError
        If every shuffle leaves the same groups of cells, as it does with one donor per condition:
        groups that only exchange their names would differ by all that the treatment does.
    """
    whole = np.zeros(len(condition), dtype=bool)
    if donors is not None:
        mixed = [d for d in np.unique(donors) if len(np.unique(condition[donors == d])) > 1]
        whole = ~np.isin(donors, mixed)
        _, strata = np.unique(np.stack([strata, donors]), axis=1, return_inverse=True)
    for _ in range(TRIES):
        shuffled = condition.copy()
        for stratum in np.unique(strata[~whole]):
            cells = np.flatnonzero((strata == stratum) & ~whole)
            shuffled[cells] = condition[rng.permutation(cells)]
        if donors is not None and whole.any():
            names, first = np.unique(donors[whole], return_index=True)
            drawn = rng.permutation(condition[whole][first])
            shuffled[whole] = drawn[np.searchsorted(names, donors[whole])]
        if _other_groups(condition, shuffled):
            return shuffled
    msg = (
        "Conditions cannot be shuffled: every stratum (or donor) within which they would be has "
        "one condition only, or there are so few donors that any exchange leaves the same groups, "
        "so that no null can be made. Name other columns with within=."
    )
    raise ValueError(msg)


def _other_groups(condition: Codes, shuffled: Codes) -> bool:
    """Tell whether the groups are other ones, and not the same by other names."""
    pairs = len(np.unique(np.stack([condition, shuffled]), axis=1).T)
    return pairs > len(np.unique(condition))
