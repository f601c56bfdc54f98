"""What a diagnosis measures and how it is graded: the vocabulary of its findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["Finding", "Measurements", "Structure", "Verdict", "grade", "predicts", "raise_or_add"]

Verdict = Literal["good", "look", "bad"]
Array = NDArray[np.float64]
Probe = Mapping[str, float | str]

PREDICTABLE, CLEARLY_PREDICTABLE = 0.2, 0.5
"""Excess of a probe's balanced accuracy over chance (0: chance, 1: never wrong) from which labels
can be told from a latent, and can be told well. With two classes that is 60 % and 75 % right."""
SEPARATED, SEPARATED_WELL = 0.3, 0.8
"""Excess from which s tells treated from background cells in part, and well: 65 and 90 % right."""
TOO_MUCH_IN_S = 0.6
"""Excess from which treated cells are called arranged by what the conditions share. Laxer than for
the condition in z: cell types that respond differently should differ in s."""
NATS_USED = 1.0
"""Log-likelihood a treated cell must lose without s for s to be called used: one nat, a likelihood
ratio of e, is less than a single informative gene gives."""
STRUCTURED = 0.1
"""Excess of the best silhouette over that of structureless cells from which there are groups. The
silhouette of a normal cloud varies by about 0.02 between draws of a few hundred cells."""


@dataclass(frozen=True)
class Finding:
    """One row of the diagnosis.

    Parameters
    ----------
    diagnostic, value
        What was looked at, and what was found.
    verdict
        ``"good"``, ``"look"`` (at the figure, at the biology, before relying on it) or ``"bad"``.
    reading
        What it means.
    advice
        What to try; empty if nothing needs to be done.
    """

    diagnostic: str
    value: float
    verdict: Verdict
    reading: str
    advice: str = ""


@dataclass(frozen=True)
class Structure:
    """Whether the treated cells fall into groups in the salient latent.

    Parameters
    ----------
    excess
        Best mean silhouette of k-means with 2 to 5 groups, less that of cells drawn from one normal
        distribution of the same covariance.
    n_groups
        Number of groups of that best one.
    """

    excess: float
    n_groups: int


@dataclass(frozen=True)
class Measurements:
    """What was measured.

    :func:`~pyro_contrastive.analysis.diagnosis.findings.findings` puts it in words.

    Parameters
    ----------
    usage
        As :func:`~pyro_contrastive.analysis.latent_usage.latent_usage` returns it.
    salient_nats
        Mean log-likelihood that treated cells lose without s.
    condition_in_x, condition_in_z, condition_in_s
        Probes of the condition (background or target) in what the encoders see, in z and in s.
    structure
        Of the treated cells in s; ``None`` if no dimension of s is used.
    k, n_draws, gap
        Pareto k of some cells, from how many draws, and the mean of log p(x) less the ELBO.
    shared_in_s, batch_in_z
        Probes of what s of treated cells (and z, for batches) should not hold, by its name;
        ``treatments_in_s``: of which treatment it was, if there are several.
    elbo
        Negative ELBO, held out if there is one, else of training cells; may be empty. Its index is
        that of the history: epochs, counted from 0.
    penalties
        Weight of each penalty of the model by name, ``"MMD"``, ``"Wasserstein"`` ....
    """

    usage: pd.DataFrame
    salient_nats: float
    condition_in_x: Probe
    condition_in_z: Probe
    condition_in_s: Probe
    structure: Structure | None
    k: Array
    n_draws: int
    gap: float
    shared_in_s: Mapping[str, Probe] = field(default_factory=dict)
    batch_in_z: Mapping[str, Probe] = field(default_factory=dict)
    treatments_in_s: Probe | None = None
    elbo: pd.Series = field(default_factory=lambda: pd.Series(dtype=float))
    penalties: Mapping[str, float] = field(default_factory=dict)


def grade(value: float, good: float, fair: float) -> Verdict:
    """Return the verdict on a value that is better the lower it is."""
    return "good" if value <= good else "look" if value <= fair else "bad"


def raise_or_add(measured: Measurements, name: str, example: str) -> str:
    """Say to raise the weight of a penalty if the model has it, else to add it."""
    if name in measured.penalties:
        return f"raise the weight of {name} (now {measured.penalties[name]:g})"
    return f"add {example}"


def predicts(found: Probe) -> bool:
    """Whether a probe can tell its labels: clearly, and better than any shuffle of them."""
    by_chance = float(found["balanced_accuracy"]) <= float(found["upper_chance"])
    return float(found["excess"]) > PREDICTABLE and not by_chance
