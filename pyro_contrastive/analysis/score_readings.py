"""Readings of the separation scores, and the thresholds between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["READINGS", "Reading"]


@dataclass(frozen=True)
class Reading:
    """What the values of a score mean.

    Parameters
    ----------
    best
        Whether high or low values are better.
    good, fair
        Values at least this good read as good, or as fair.
    sentences
        What a good, a fair and a poor value mean.
    """

    best: Literal["high", "low"]
    good: float
    fair: float
    sentences: tuple[str, str, str]

    def __call__(self, value: float) -> str:
        """Return the sentence for `value`."""
        sign = 1.0 if self.best == "high" else -1.0
        if sign * value >= sign * self.good:
            return self.sentences[0]
        return self.sentences[1] if sign * value >= sign * self.fair else self.sentences[2]


# Keyed by latent, what is scored, and measure. The thresholds are rules of thumb, not tests.
READINGS: dict[tuple[str, str, str], Reading] = {
    ("background", "condition", "mixing"): Reading(
        "high",
        0.9,
        0.7,
        (
            "Neighbours are a fair draw of both conditions: little of the treatment is left here.",
            "Conditions overlap but are not evenly mixed: some of the treatment is left here.",
            "Cells mostly neighbour their own condition: this latent still holds the treatment.",
        ),
    ),
    ("background", "condition", "silhouette"): Reading(
        "low",
        0.02,
        0.1,
        (
            "The two conditions do not form groups of their own.",
            "The two conditions are slightly offset from each other.",
            "The two conditions form separate groups, which they should not do here.",
        ),
    ),
    ("salient", "condition", "mixing"): Reading(
        "low",
        0.2,
        0.5,
        (
            "Nearly all neighbours share a cell's condition: the response is captured.",
            "Most neighbours share a cell's condition: the response is captured in part.",
            "Treated and background cells are hard to tell apart: weak response, or none found.",
        ),
    ),
    ("salient", "condition", "silhouette"): Reading(
        "high",
        0.4,
        0.1,
        (
            "Treated and background cells form two compact, well separated groups.",
            "Treated and background cells form two groups that touch or spread widely.",
            "Treated and background cells do not form two groups.",
        ),
    ),
    ("background", "labels", "NMI"): Reading(
        "high",
        0.6,
        0.4,
        (
            "Clusters recover the labels well.",
            "Clusters recover the labels in part; close relatives are merged or split.",
            "Clusters have little to do with the labels.",
        ),
    ),
    ("background", "labels", "ARI"): Reading(
        "high",
        0.6,
        0.3,
        (
            "Pairs of cells are put together or apart as the labels say.",
            "Many pairs agree with the labels; big classes are split or small ones merged.",
            "Pairs agree with the labels little better than by chance.",
        ),
    ),
    ("background", "labels", "silhouette"): Reading(
        "high",
        0.25,
        0.05,
        (
            "The labels are compact, separate groups.",
            "The labels are groups that touch, as related cell types do.",
            "The labels overlap.",
        ),
    ),
    ("salient", "labels", "NMI"): Reading(
        "low",
        0.15,
        0.4,
        (
            "Treated cells are not arranged by label: little has leaked in.",
            "Partly arranged by label: leakage, or a response that differs between labels.",
            "Arranged by label: this latent holds what belongs in the background.",
        ),
    ),
}
