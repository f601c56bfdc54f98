"""The findings of the diagnosis: a verdict, what the value means, and what to try.

Every threshold is a rule of thumb, and explained where it is defined.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    means_differ,
    predicts,
    raise_or_add,
    sees_response,
    separated_preset,
    uses_salient,
)
from pyro_contrastive.analysis.diagnosis.posterior_findings import closeness_findings
from pyro_contrastive.analysis.diagnosis.salient_map import salient_map
from pyro_contrastive.analysis.diagnosis.training_findings import (
    UNTRAINED,
    cells_finding,
    training_findings,
)

__all__ = ["UNTRAINED", "as_table", "cells_finding", "findings"]

EXPECTED_IN_S = 0.3
"""Excess of a probe up to which treated cells are not called arranged by a label they share."""
MEASURABLE = 0.05
"""Fewest nats that show in a number with one decimal; below, s is reported to add nothing."""


def findings(measured: Measurements) -> list[Finding]:
    """Explain all measurements; the salient latent comes first."""
    rows = [
        salient_map(measured),
        *_genes(measured),
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
    return [*rows, *closeness_findings(measured), *training_findings(measured)]


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


def _genes(measured: Measurements) -> list[Finding]:
    """Say how many genes differ in mean; nothing if the test does not apply."""
    name, genes = "genes that differ", measured.genes
    if genes is None:
        return []
    if genes.refused:
        return [Finding(name, float("nan"), "look", f"Not tested. {genes.refused}")]
    unit = "cells" if genes.donors is None else f"donors ({genes.donors})"
    amount = f"{genes.found} of {genes.tested} genes differ" if genes.found else "No gene differs"
    reading = (
        f"{amount} in their mean counts between treated and background cells that are alike in z, "
        f"with {unit} as replicates, at a false discovery rate of 5 %."
    )
    if means_differ(measured):
        advice = 'differential_expression(mode="means") names them'
        return [Finding(name, genes.found, "good", reading, advice)]
    return [Finding(name, genes.found, "look", reading, "see the salient map")]


def _salient_use(measured: Measurements) -> Finding:
    name, nats, error = "use of the salient latent", measured.salient_nats, measured.salient_nats_se
    amount = f"{abs(nats):.1f} nats" + (f" (standard error {error:.1f})" if error else "")
    if uses_salient(measured, 3 * NATS_USED):
        if sees_response(measured):
            reading = (
                f"s adds {amount} to a treated cell's log-likelihood: the decoder relies on it."
            )
            return Finding(name, nats, "good", reading)
        held = "and no response" if not means_differ(measured) else "and little of the response"
        reading = (
            f"s adds {amount} to a treated cell's log-likelihood, but neither in s nor in the "
            "counts can single treated cells be told from background cells: it holds variation "
            f"that both have, {held}."
        )
        return Finding(name, nats, "look", reading, "see the salient map")
    reading = "s adds no measurable log-likelihood to a treated cell: the decoder does not use it."
    if nats >= MEASURABLE and nats > 2 * error:
        reading = f"s adds only {amount} to a treated cell's log-likelihood: it is hardly used."
    elif nats <= -MEASURABLE and -nats > 2 * error:
        reading = (
            f"s takes {amount} from a treated cell's log-likelihood: what it learned of the cells "
            "that trained does not hold for these."
        )
    verdict: Verdict = "look" if uses_salient(measured) else "bad"
    return Finding(name, nats, verdict, reading, "see the salient map")


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
    verdict = grade(-excess, -SEPARATED_WELL, -SEPARATED) if predicts(found) else "bad"
    words = {
        "good": "s separates treated from background cells",
        "look": "s separates treated from background cells in part",
        "bad": "s hardly separates treated from background cells"
        if predicts(found)
        else "s does not separate treated from background cells better than shuffled labels",
    }
    advice = "" if verdict == "good" else "see the salient map"
    reading = f"{words[verdict]}: {_score(found)}."
    return Finding("condition in s", excess, verdict, reading, advice)


def _shared_in_s(name: str, found: Probe, measured: Measurements) -> Finding:
    excess = float(found["excess"])
    verdict = grade(excess, EXPECTED_IN_S, TOO_MUCH_IN_S) if predicts(found) else "good"
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
