"""What a diagnosis measures, and how it is graded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = [
    "Closeness",
    "Finding",
    "GenesFound",
    "Measurements",
    "Structure",
    "Verdict",
    "beats_shuffles",
    "grade",
    "means_differ",
    "predicts",
    "raise_or_add",
    "sees_response",
    "separated_preset",
    "uses_salient",
]

Verdict = Literal["good", "look", "bad"]
Array = NDArray[np.float64]
Probe = Mapping[str, float | str]

PREDICTABLE, CLEARLY_PREDICTABLE = 0.2, 0.5
"""Excess of a probe's balanced accuracy over chance (0: chance, 1: always right) above which labels
can be predicted from a latent, and predicted well. With two classes that is 60 % and 75 % right."""
SEPARATED, SEPARATED_WELL = 0.3, 0.8
"""Excess from which s separates treated from background cells in part, and well: 65 % and 90 %
right."""
TOO_MUCH_IN_S = 0.6
"""Excess above which treated cells are called arranged by a label that the conditions share. Laxer
than for the condition in z, since cell types that respond differently should differ in s."""
NATS_USED = 1.0
"""Log-likelihood that s must add to a treated cell to be called used. One nat, a likelihood ratio
of e, is less than a single informative gene gives."""
STRUCTURED = 0.1
"""Excess of the best silhouette over that of cells without structure above which there are groups.
The silhouette of a normal cloud varies by about 0.02 between draws of a few hundred cells."""

ENOUGH_GENES = 3
"""Genes that must differ in mean to be called a response. Where there is none, a test at a false
discovery rate of 5 % finds one in 5 % of data sets, and seldom several."""


@dataclass(frozen=True)
class Finding:
    """One row of the diagnosis.

    Parameters
    ----------
    diagnostic, value
        What was measured, and its value.
    verdict
        ``"good"``, ``"look"`` (look closer, at figures and biology, before relying on it) or
        ``"bad"``.
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
        Best mean silhouette of k-means with 2 to 5 groups, less that of cells drawn from a normal
        distribution with the same covariance.
    n_groups
        Number of groups with the best silhouette.
    """

    excess: float
    n_groups: int


@dataclass(frozen=True)
class GenesFound:
    """What the test of means finds between treated and background cells alike in z.

    Parameters
    ----------
    found, tested
        Numbers of genes, at a false discovery rate of 5 %.
    donors
        The column of donors, if these were the unit; else ``None``.
    refused
        Why there was no test; empty if there was one.
    """

    found: int = 0
    tested: int = 0
    donors: str | None = None
    refused: str = ""


@dataclass(frozen=True)
class Closeness:
    """How close posteriors are to the true ones, over some cells.

    Parameters
    ----------
    k
        Pareto k of each cell.
    elbo, log_p
        Means over cells of the ELBO and of the importance-weighted log p(x), in nats.
    """

    k: Array
    elbo: float
    log_p: float


@dataclass(frozen=True)
class Measurements:
    """What was measured; the findings explain it.

    Parameters
    ----------
    usage
        As :func:`~pyro_contrastive.analysis.latent_usage.latent_usage` returns it.
    salient_nats, salient_nats_se
        Log-likelihood that treated cells lose without s, in nats, mean over cells, and the standard
        error of that mean.
    condition_in_x, condition_in_z, condition_in_s
        Probes of the condition (background or target) in the encoders' input, in z and in s.
    structure
        Groups of treated cells in s; ``None`` if no dimension of s is used.
    guide
        How close the guide is to the posterior of some cells.
    refined
        The same of refined posteriors; ``None`` for a model that is not trained.
    n_draws
        Number of draws that both are from.
    shared_in_s, batch_in_z
        Probes of labels that s of treated cells (and z, for batches) should not hold, by the name
        of the label. ``treatments_in_s``: a probe of the treatment, if there are several.
    elbo
        Negative ELBO by epoch, counted from 0 as in the history: of held-out cells if there are
        any, else of training cells; may be empty.
    restored_epoch
        Epoch whose weights were put back at the end of training; ``None``: those of the last.
    penalties
        Weight of each penalty of the model by name, such as ``"MMD"``.
    salient_prior
        Name of the class of the salient prior.
    genes
        What the test of means finds; ``None`` if it does not apply to the model.
    """

    usage: pd.DataFrame
    salient_nats: float
    condition_in_x: Probe
    condition_in_z: Probe
    condition_in_s: Probe
    structure: Structure | None
    guide: Closeness
    refined: Closeness | None
    n_draws: int
    salient_nats_se: float = 0.0
    shared_in_s: Mapping[str, Probe] = field(default_factory=dict)
    batch_in_z: Mapping[str, Probe] = field(default_factory=dict)
    treatments_in_s: Probe | None = None
    elbo: pd.Series = field(default_factory=lambda: pd.Series(dtype=float))
    restored_epoch: int | None = None
    penalties: Mapping[str, float] = field(default_factory=dict)
    salient_prior: str = ""
    genes: GenesFound | None = None


def uses_salient(measured: Measurements, nats: float = NATS_USED) -> bool:
    """Whether s adds at least so many nats to treated cells, and more than two standard errors."""
    found = measured.salient_nats
    return found >= nats and found > 2 * measured.salient_nats_se


def sees_response(measured: Measurements) -> bool:
    """Whether treated and background cells can be told apart, in s or in the counts."""
    return predicts(measured.condition_in_s) or predicts(measured.condition_in_x)


def means_differ(measured: Measurements) -> bool:
    """Whether the mean counts of several genes differ, which shows what no single cell does."""
    return measured.genes is not None and measured.genes.found >= ENOUGH_GENES


def grade(value: float, good: float, fair: float) -> Verdict:
    """Return the verdict on a value that is better the lower it is."""
    return "good" if value <= good else "look" if value <= fair else "bad"


def raise_or_add(measured: Measurements, name: str, example: str) -> str:
    """Advise to raise the weight of a penalty if the model has it, or else to add it."""
    if name in measured.penalties:
        return f"raise the weight of {name} (now {measured.penalties[name]:g})"
    return f"add {example}"


def beats_shuffles(found: Probe) -> bool:
    """Whether a probe predicts its labels better than any shuffle of them, if only a little."""
    return float(found["balanced_accuracy"]) > float(found["upper_chance"])


def separated_preset(measured: Measurements) -> str:
    """Advise to take the preset, unless the model already has its penalties."""
    if set(measured.penalties) >= {"MMD", "HSIC", "Wasserstein"}:
        return ""
    return ', or from_preset(adata, "separated")'


def predicts(found: Probe) -> bool:
    """Whether a probe predicts its labels: clearly, and better than any shuffle of them."""
    return float(found["excess"]) > PREDICTABLE and beats_shuffles(found)
