"""The findings of the diagnosis: a verdict, what the value means, and what to try.

Every threshold is a rule of thumb, and explained where it is defined.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pyro_contrastive.analysis.diagnosis.measurements import (
    CLEARLY_PREDICTABLE,
    NATS_USED,
    PREDICTABLE,
    SEPARATED,
    SEPARATED_WELL,
    TOO_MUCH_IN_S,
    Finding,
    Measurements,
    Probe,
    Verdict,
    grade,
    predicts,
    raise_or_add,
    separated_preset,
)
from pyro_contrastive.analysis.diagnosis.posterior_findings import closeness_findings
from pyro_contrastive.analysis.diagnosis.salient_map import salient_map

__all__ = ["UNTRAINED", "as_table", "findings"]

EXPECTED_IN_S = 0.3
"""Excess of a probe up to which treated cells are not called arranged by a label they share."""
STILL_FALLING, WORSE = 0.01, 0.03
"""Shares of the whole fall of the negative ELBO: above the first, brought by the last tenth of the
epochs, it is still falling; above the second, risen since the minimum, it has got worse."""

MEASURABLE = 0.05
"""Fewest nats that show in a number with one decimal; below, s is reported to add nothing."""

UNTRAINED = Finding(
    "training",
    0.0,
    "bad",
    "The model has not been trained by train(): unless you trained its module yourself, everything "
    "here is about random weights.",
    "train()",
)


def findings(measured: Measurements) -> list[Finding]:
    """Explain all measurements; the salient latent comes first."""
    rows = [
        salient_map(measured),
        _salient_use(measured),
        _dimensions(measured, "salient"),
        _dimensions(measured, "background"),
        _condition_in_z(measured),
        _condition_in_s(measured),
    ]
    rows += [_shared_in_s(name, found, measured) for name, found in measured.shared_in_s.items()]
    rows += [_batch_in_z(name, found) for name, found in measured.batch_in_z.items()]
    if measured.treatments_in_s is not None:
        rows.append(_treatments(measured.treatments_in_s, measured.salient_prior))
    return [*rows, *closeness_findings(measured), *_training(measured)]


def as_table(rows: Sequence[Finding]) -> pd.DataFrame:
    """Put findings in a table, a row for each, indexed by ``diagnostic``."""
    table = pd.DataFrame(
        [
            {
                "diagnostic": row.diagnostic,
                "value": row.value,
                "verdict": row.verdict,
                "reading": row.reading,
                "try": row.advice,
            }
            for row in rows
        ]
    )
    return table.set_index("diagnostic")


def _score(found: Probe) -> str:
    return (
        f"a {found['probe']} probe gets {found['balanced_accuracy']:.0%} right (balanced), where "
        f"chance is {found['chance']:.0%}; AUC {found['auc']:.2f}, mixing {found['mixing']:.2f}"
    )


def _salient_use(measured: Measurements) -> Finding:
    nats = measured.salient_nats
    if nats >= 3 * NATS_USED:
        reading = (
            f"s adds {nats:.1f} nats to a treated cell's log-likelihood: the decoder relies on it."
        )
        return Finding("use of the salient latent", nats, "good", reading)
    reading = "s adds no measurable log-likelihood to a treated cell: the decoder does not use it."
    if nats >= MEASURABLE:
        adds = f"s adds only {nats:.1f} nats to a treated cell's log-likelihood"
        reading = f"{adds}: the decoder hardly uses it."
    verdict: Verdict = "look" if nats >= NATS_USED else "bad"
    return Finding("use of the salient latent", nats, verdict, reading, "see the salient map")


def _dimensions(measured: Measurements, latent: str) -> Finding:
    own = measured.usage.query("latent == @latent")
    used, total = int(own["used"].sum()), len(own)
    name = f"unused {latent} dimensions"
    size = f"n_{latent}_latent"
    if used == 0:
        reading = f"None of {total} dimensions carries information: the latent has collapsed."
        return Finding(
            name, total, "bad", reading, "more epochs; a slower KL warm-up (n_epochs_kl_warmup)"
        )
    reading = f"{used} of {total} dimensions are used."
    if used == total:
        advice = f"try a larger {size}: more may be needed"
        return Finding(name, 0, "good", f"All {total} dimensions are used.", advice)
    if used * 2 < total:
        return Finding(name, total - used, "look", reading, f"{size}={used + 1} would be enough")
    return Finding(name, total - used, "good", f"{reading} The others do no harm.")


def _condition_in_z(measured: Measurements) -> Finding:
    found = measured.condition_in_z
    excess = float(found["excess"])
    verdict = grade(excess, PREDICTABLE, CLEARLY_PREDICTABLE) if predicts(found) else "good"
    words = {
        "good": "Little of the condition is left in z",
        "look": "Some of the condition is left in z",
        "bad": "z holds the condition, which it should not",
    }
    advice = ""
    if verdict != "good":
        advice = raise_or_add(measured, "MMD", "penalties=[MMD(30.0)]")
        advice += separated_preset(measured)
    reading = f"{words[verdict]}: {_score(found)}."
    return Finding("condition in z", excess, verdict, reading, advice)


def _condition_in_s(measured: Measurements) -> Finding:
    found = measured.condition_in_s
    excess = float(found["excess"])
    verdict = grade(-excess, -SEPARATED_WELL, -SEPARATED)
    words = {
        "good": "s separates treated from background cells",
        "look": "s separates treated from background cells in part",
        "bad": "s hardly separates treated from background cells",
    }
    advice = "" if verdict == "good" else "see the salient map"
    reading = f"{words[verdict]}: {_score(found)}."
    return Finding("condition in s", excess, verdict, reading, advice)


def _shared_in_s(name: str, found: Probe, measured: Measurements) -> Finding:
    excess = float(found["excess"])
    verdict = grade(excess, EXPECTED_IN_S, TOO_MUCH_IN_S)
    words = {
        "good": f"Treated cells are not arranged by {name} in s",
        "look": f"Treated cells are partly arranged by {name} in s: leakage, or a response that "
        "differs between them",
        "bad": f"Treated cells are arranged by {name} in s, although both conditions share it",
    }
    advice = ""
    if verdict != "good":
        advice = (
            f"{raise_or_add(measured, 'HSIC', 'penalties=[HSIC(30.0)]')}; "
            "fewer salient dimensions; "
            f"ask get_treatment_effect whether the response differs by {name}"
        )
    return Finding(f"{name} in s", excess, verdict, f"{words[verdict]}: {_score(found)}.", advice)


def _batch_in_z(name: str, found: Probe) -> Finding:
    excess = float(found["excess"])
    verdict = grade(excess, PREDICTABLE, CLEARLY_PREDICTABLE) if predicts(found) else "good"
    words = {
        "good": "Batches mix in z",
        "look": "Batches differ somewhat in z",
        "bad": "Batches separate in z, although encoders and decoder know the batch of a cell",
    }
    advice = "" if verdict == "good" else "more epochs; check whether batches differ in cell types"
    return Finding(f"{name} in z", excess, verdict, f"{words[verdict]}: {_score(found)}.", advice)


def _treatments(found: Probe, salient_prior: str) -> Finding:
    excess = float(found["excess"])
    verdict: Verdict = "good" if predicts(found) else "look"
    words = "Treatments separate in s" if predicts(found) else "Treatments look alike in s"
    advice = "" if predicts(found) else "more cells per treatment"
    if advice and salient_prior != "PerConditionNormal":
        advice = f"salient_prior=PerConditionNormal(...), {advice}"
    return Finding("treatments in s", excess, verdict, f"{words}: {_score(found)}.", advice)


def _training(measured: Measurements) -> list[Finding]:
    by_epoch = pd.Series(measured.elbo, dtype=float)
    by_epoch = by_epoch[np.isfinite(by_epoch)]
    elbo = by_epoch.to_numpy()
    fewest = 5
    if len(elbo) < fewest:
        return []
    fall = max(float(elbo[0] - elbo.min()), 1e-9)
    tenth = max(1, len(elbo) // 10)
    late = float(elbo[-2 * tenth : -tenth].mean() - elbo[-tenth:].mean()) / fall
    risen = float(elbo[-1] - elbo.min()) / fall
    if risen > WORSE:
        reading = (
            f"The negative ELBO has risen by {risen:.0%} of its fall since its best, at epoch "
            f"{by_epoch.idxmin()} (counted from 0 to {by_epoch.index[-1]}): the model overfits, "
            "unless early stopping restored the weights of that epoch."
        )
        return [Finding("training", risen, "bad", reading, "early_stopping=True; fewer epochs")]
    verdict: Verdict = "good" if late <= STILL_FALLING else "look"
    words = "has settled" if verdict == "good" else "is still falling"
    reading = (
        f"The negative ELBO {words}: the last tenth of training brought {late:.1%} of its fall."
    )
    return [Finding("training", late, verdict, reading, "" if verdict == "good" else "more epochs")]
