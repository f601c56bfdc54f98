"""Findings about donors: how much of s is donor, and what their number allows to be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis.diagnosis.measurements import Finding, Probe, Verdict, grade
from pyro_contrastive.analysis.leakage import MIN_PER_CLASS, leakage_row
from pyro_contrastive.analysis.posterior import latent_representation
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.cells import BACKGROUND

__all__ = ["donor_findings", "donor_in_s", "donor_numbers"]

SOME_IN_S, MUCH_IN_S = 0.2, 0.5
"""Excess of a probe above which treated cells are arranged by donor in part, and clearly. Lower
than for cell types: these may be expected to respond differently."""
ENOUGH_DONORS = 3
"""Donors of each condition that a test of ordinary size needs: with two it finds only what is much
larger than the differences between donors."""


def donor_findings(
    query: Query, donors: NDArray[Any], key: str, *, n_permutations: int, seed: int
) -> list[Finding]:
    """Count the donors, and probe the salient latent of treated cells for them.

    Parameters
    ----------
    query
        The model, the data, and the cells to probe.
    donors
        Donor of every cell of the data.
    key
        The column of donors.
    n_permutations, seed
        Shuffles of the probe, and seed.
    """
    codes = query.data.condition
    assert codes is not None
    known = codes >= BACKGROUND
    is_target = codes > BACKGROUND
    rows = [donor_numbers(donors[known], is_target[known], key)]
    paired = bool(set(donors[known & ~is_target]) & set(donors[is_target]))
    targets = query.cells[is_target[query.cells]]
    of_targets = donors[targets]
    if (pd.Series(of_targets).value_counts() >= MIN_PER_CLASS).sum() < 2:  # noqa: PLR2004  # something to tell apart
        return rows  # nothing to tell apart
    with seeded(seed):
        s = latent_representation(query.of(targets), "salient", give_mean=False).astype(float)
    found = leakage_row(s, of_targets, n_permutations=n_permutations, seed=seed)
    return [*rows, donor_in_s(found, paired=paired)]


def donor_in_s(found: Probe, *, paired: bool) -> Finding:
    """Explain a probe of donors in the salient latent of treated cells."""
    excess = float(found["excess"])
    verdict = grade(excess, SOME_IN_S, MUCH_IN_S)
    score = (
        f"a {found['probe']} probe tells the donor of {found['balanced_accuracy']:.0%} of the "
        f"cells (balanced; chance is {found['chance']:.0%})"
    )
    if verdict == "good":
        return Finding(
            "donors in s", excess, verdict, f"Treated cells of different donors mix in s: {score}."
        )
    much = "partly arranged" if verdict == "look" else "arranged"
    why = (
        "either donors respond differently, or what distinguishes donors anyway was taken for "
        "response"
        if paired
        else "as no donor has cells of both conditions, a response that differs between donors "
        "cannot be told from what distinguishes them anyway"
    )
    return Finding(
        "donors in s",
        excess,
        verdict,
        f"Treated cells are {much} by donor in s: {score}. That means: {why}.",
        'differential_expression(mode="means") with donors as the unit; do not read groups in s '
        "as kinds of response before each is seen in several donors",
    )


def donor_numbers(donors: NDArray[Any], is_target: NDArray[np.bool_], key: str) -> Finding:
    """Say how many donors each condition has, and what that allows.

    Parameters
    ----------
    donors, is_target
        Donor and population of each cell.
    key
        The column of donors.
    """
    sides = [set(donors[cells].tolist()) for cells in (~is_target, is_target)]
    n_both, fewest = len(sides[0] & sides[1]), min(map(len, sides))
    counted = f"{len(sides[0])} background and {len(sides[1])} target donors (adata.obs[{key!r}])"
    verdict: Verdict = "good" if fewest >= ENOUGH_DONORS else "look" if fewest > 1 else "bad"
    if n_both:
        counted += f", {n_both} of them with cells of both conditions"
    else:
        counted += ", none with cells of both conditions"
    words = {
        "good": "differences between conditions can be compared with those between donors.",
        "look": "with two donors of a condition, only differences much larger than those between "
        "donors are found.",
        "bad": "the condition cannot be told from its donors: cells of one donor are not "
        "replicates, and nothing says how much donors differ.",
    }
    advice = {
        "good": "",
        "look": "more donors; donors with cells of both conditions",
        "bad": "cells of more donors; until then results are about these very donors",
    }
    return Finding("donors", fewest, verdict, f"{counted}: {words[verdict]}", advice[verdict])
