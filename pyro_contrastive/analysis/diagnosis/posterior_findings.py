"""Findings on the guide: comparison with NUTS, and simulation-based calibration."""

from __future__ import annotations

from pyro_contrastive.analysis.calibration import Calibration
from pyro_contrastive.analysis.diagnosis.measurements import Finding, Verdict, grade
from pyro_contrastive.analysis.posterior_accuracy import PosteriorAccuracy

__all__ = ["accuracy_findings", "calibration_finding"]

MANY_QUANTITIES = 0.5
"""Calibration is bad if the ranks of more than this share of the quantities are not uniform."""


def accuracy_findings(found: PosteriorAccuracy) -> list[Finding]:
    """Explain the comparison of the encoder with NUTS (or refined posteriors).

    An error of the mean below 0.3 posterior standard deviations does not change what is reported;
    above 1, most of the posterior is misplaced. A standard deviation within a quarter of the right
    one is as good as that of most samplers; at half or twice that, intervals are misleading.
    """
    rows = []
    for (guide, site), row in found.summary().iterrows():
        if guide != "encoder":
            continue
        reference = "NUTS" if row["reference"] == "nuts" else "the refined posterior"
        error, ratio = float(row["mean_error"]), float(row["sd_ratio"])
        verdict = grade(error, 0.3, 1.0)
        reading = (
            f"Means of {site} differ by {error:.2f} posterior standard deviations from {reference}."
        )
        advice = "" if verdict == "good" else "more epochs; wider encoders (n_hidden, n_layers)"
        rows.append(Finding(f"error of {site}", error, verdict, reading, advice))
        side = "narrower" if ratio < 1 else "wider"
        verdict = grade(max(ratio, 1 / ratio), 1.25, 2.0)
        reading = f"The posterior of {site} is {side} than that of {reference}: {ratio:.2f} times."
        advice = (
            "" if verdict == "good" else "widen intervals accordingly; less weight on penalties"
        )
        rows.append(Finding(f"width of {site}", ratio, verdict, reading, advice))
    gap = float(found.cells["amortisation_gap"].mean())
    # In nats: differences between models are of this size.
    verdict = grade(gap, 1.0, 5.0)
    reading = (
        f"The refined posterior of a cell has an ELBO {gap:.1f} nats higher than the encoder's."
    )
    advice = (
        ""
        if verdict == "good"
        else "more epochs; refine=True for intervals, marginal likelihoods and tests"
    )
    return [*rows, Finding("amortisation gap", gap, verdict, reading, advice)]


def calibration_finding(found: Calibration) -> Finding:
    """Explain the result of simulation-based calibration."""
    every = found.table
    table = every[every["uniform"].notna()]
    if table.empty:
        reading = f"Not tested: {len(found.ranks)} simulated cells are too few."
        return Finding("calibration", float("nan"), "look", reading, "more n_simulations")
    failed = table[~table["uniform"]]
    share = len(failed) / len(table)
    if failed.empty:
        reading = f"Ranks of all {len(table)} quantities are uniform: no bias, right width."
        return Finding("calibration", 0, "good", reading)
    worst = failed["p_value"].idxmin()
    reading = (
        f"Ranks of {len(failed)} of {len(table)} quantities are not uniform on cells simulated "
        f"from the model; worst {worst}: {failed.loc[worst, 'reading']}"
    )
    verdict: Verdict = "look" if share <= MANY_QUANTITIES else "bad"
    advice = (
        "plot_ranks() shows how; check real cells with posterior_accuracy(), since simulated cells "
        "may differ from those that the encoder was trained on"
    )
    return Finding("calibration", len(failed), verdict, reading, advice)
