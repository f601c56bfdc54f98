"""A fit held against fits to shuffled conditions: measures, rules and the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

__all__ = ["MEASURES", "NullCheck", "judged"]

Answer = Literal["response", "signs", "none"]

MEASURES = {
    "genes": "genes whose mean differs at a false discovery rate of 5 %",
    "intervals": "share of the 95 % intervals of the effect that exclude 0",
    "nats": "log-likelihood that s adds to a treated cell, nats",
    "separation": "how well s separates the conditions, from 0 (chance) to 1",
}
"""What is measured. All but the genes are of cells that did not train."""
MORE_GENES, MORE_INTERVALS, MORE_NATS, MORE_SEPARATION = 3, 0.05, 0.1, 0.2
STANDARD_ERRORS = 3
ENOUGH = 2
"""Measures that must stand out for the verdict "a response"; one alone may do so by luck."""


@dataclass(frozen=True)
class NullCheck:
    """Whether a fit finds more than the same fit finds in shuffled conditions.

    Parameters
    ----------
    table
        A row per measure (`MEASURES`): ``observed``, ``null_mean``, ``null_max``, ``shuffle 1`` and
        so on, ``stands_out`` and ``meaning``. ``table.to_csv(...)`` writes it.
    answer
        ``"response"`` if at least two measures stand out, ``"signs"`` if one does, else ``"none"``.
    verdict
        The answer as a sentence.
    within
        Columns within whose levels the conditions were shuffled.
    n_shuffles, seed
        Number of shuffles, and their seed.
    """

    table: pd.DataFrame
    answer: Answer
    verdict: str
    within: tuple[str, ...]
    n_shuffles: int
    seed: int

    def __str__(self) -> str:
        """Return verdict and table as text."""
        return f"{self.verdict}\n\n{self.table.drop(columns='meaning').to_string()}"

    def to_json(self) -> str:
        """Return everything as JSON; measures that do not apply are left out of the table."""
        found: dict[str, Any] = {
            "verdict": self.verdict,
            "answer": self.answer,
            "within": list(self.within),
            "n_shuffles": self.n_shuffles,
            "seed": self.seed,
            "measures": json.loads(self.table.to_json(orient="index")),
        }
        return json.dumps(found, indent=1)


def judged(
    observed: Mapping[str, float],
    nulls: Sequence[Mapping[str, float]],
    *,
    errors: Mapping[str, float],
    within: Sequence[str],
    seed: int,
) -> NullCheck:
    """Compare the measures of a fit with those of fits to shuffled conditions.

    A measure stands out if it exceeds every shuffle by a margin: genes, twice the most of any
    shuffle and 3 more; intervals, 5 points, the share that misses 0 by definition; nats, 0.1 and
    three standard errors; separation, 0.2, as in the diagnosis, and three standard errors. A
    shuffle below 0 nats or separation counts as 0. The margins are rules of thumb: few shuffles say
    what is usual, but not how rare the unusual is.

    Parameters
    ----------
    observed, nulls
        Values by measure, of the fit and of each shuffle. Measures that do not apply are missing.
    errors
        Standard errors of the nats and of the separation observed.
    within, seed
        See :class:`NullCheck`.
    """
    rows = {}
    for name, value in observed.items():
        values = [null[name] for null in nulls]
        most = max(values)
        bars = {
            "genes": 2 * most + MORE_GENES,
            "intervals": most + MORE_INTERVALS,
            "nats": max(most, 0.0) + max(MORE_NATS, STANDARD_ERRORS * errors["nats"]),
            "separation": max(most, 0.0)
            + max(MORE_SEPARATION, STANDARD_ERRORS * errors["separation"]),
        }
        rows[name] = (
            {"observed": value, "null_mean": sum(values) / len(values), "null_max": most}
            | {f"shuffle {i + 1}": null for i, null in enumerate(values)}
            | {"stands_out": value >= bars[name], "meaning": MEASURES[name]}
        )
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("measure")
    found = list(table.index[table["stands_out"]])
    answer: Answer = "response" if len(found) >= ENOUGH else "signs" if found else "none"
    return NullCheck(
        table, answer, _verdict(answer, found, len(nulls)), tuple(within), len(nulls), seed
    )


def _verdict(answer: Answer, found: Sequence[str], n_shuffles: int) -> str:
    times = f"{n_shuffles} fit{'s' * (n_shuffles > 1)} with shuffled conditions"
    names = ", ".join(found)
    if answer == "response":
        return f"A response: the fit finds more than {times} do ({names})."
    if answer == "signs":
        return f"Signs of a response: only one measure ({names}) exceeds those of {times}."
    return f"No response found: {times} look the same."
