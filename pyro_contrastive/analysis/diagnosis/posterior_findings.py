"""Findings on the guide: Pareto k, refinement, comparison with NUTS, and calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive.analysis.calibration import Calibration
from pyro_contrastive.analysis.diagnosis.measurements import (
    Closeness,
    Finding,
    Measurements,
    Verdict,
    grade,
)
from pyro_contrastive.analysis.pareto import k_threshold
from pyro_contrastive.analysis.posterior_accuracy import PosteriorAccuracy

__all__ = ["accuracy_findings", "calibration_finding", "closeness_findings"]

MANY_QUANTITIES = 0.5
"""Calibration is bad if the ranks of more than this share of the quantities are not uniform."""
LOOSE, VERY_LOOSE = 0.25, 1.0
"""Nats between ELBO and log p(x) per latent dimension. At 0.25 the scale of a normal posterior is
wrong by a factor of 1.7, or its mean by 0.7 standard deviations; at 1 by 3.4, or 1.4."""
SMALL_GAP, LARGE_GAP = 1.0, 5.0
"""Nats per cell between the ELBO of the guide and that of refined posteriors. Differences between
models are of this size."""
WHERE_IT_MATTERS = "intervals, marginal likelihoods and weak responses; a map does not need it"


def closeness_findings(measured: Measurements) -> list[Finding]:
    """Explain how close the guide is to the posterior, and what refinement changes."""
    rows = [_pareto(measured)]
    if measured.refined is not None:
        rows += [_pareto_refined(measured.refined, measured.n_draws)]
        rows += [_amortisation(measured.refined.elbo - measured.guide.elbo)]
    return [*rows, _looseness(measured)]


def _pareto(measured: Measurements) -> Finding:
    """Grade the median k: above the threshold there are too few draws, above 1 none are enough."""
    k, n_draws = measured.guide.k, measured.n_draws
    median = float(np.median(k))
    verdict = grade(median, k_threshold(n_draws), 1.0)
    meaning = {
        "good": "the guide is close enough to the posterior to be corrected by importance sampling",
        "look": "means may be right, but tails and correlations are not",
        "bad": "the guide is too narrow or misplaced to be corrected by importance sampling",
    }
    advice = ""
    if verdict != "good" and measured.refined is not None:
        advice = f"refine=True for {WHERE_IT_MATTERS}"
    elif verdict != "good":
        advice = "posterior_accuracy() shows what is wrong; more epochs, wider encoders (n_hidden)"
    reading = f"Pareto k of the guide: {_shares(k, n_draws)}: {meaning[verdict]}."
    return Finding("pareto k", median, verdict, reading, advice)


def _pareto_refined(refined: Closeness, n_draws: int) -> Finding:
    median = float(np.median(refined.k))
    verdict = grade(median, k_threshold(n_draws), 1.0)
    meaning = {
        "good": "these can be relied on",
        "look": "tails and correlations are still off",
        "bad": "the true posterior is far from any normal distribution",
    }
    advice = {
        "good": "",
        "look": "more steps, such as refine=100",
        "bad": "posterior_accuracy() shows what is wrong; another likelihood (a Poisson makes "
        "posteriors too narrow)",
    }
    reading = f"Pareto k of refined posteriors: {_shares(refined.k, n_draws)}: {meaning[verdict]}."
    return Finding("pareto k, refined", median, verdict, reading, advice[verdict])


def _shares(k: NDArray[np.float64], n_draws: int) -> str:
    threshold = k_threshold(n_draws)
    share = float((k > threshold).mean())
    return f"median {np.median(k):.2f}, above {threshold:.2f} in {share:.0%} of {len(k)} cells"


def _amortisation(gap: float) -> Finding:
    verdict = grade(gap, SMALL_GAP, LARGE_GAP)
    reading = (
        f"Refinement raises the ELBO of a cell by {gap:.1f} nats: what one encoder for all cells "
        "costs."
    )
    advice = "" if verdict == "good" else f"refine=True for {WHERE_IT_MATTERS}"
    return Finding("amortisation gap", gap, verdict, reading, advice)


def _looseness(measured: Measurements) -> Finding:
    best = measured.guide if measured.refined is None else measured.refined
    gap = best.log_p - measured.guide.elbo
    per_dimension = gap / len(measured.usage)
    verdict = grade(per_dimension, LOOSE, VERY_LOOSE)
    reading = (
        f"The ELBO lies at least {gap:.1f} nats per cell below log p(x), {per_dimension:.2f} per "
        "latent dimension."
    )
    if verdict != "good":
        reading += " It underrates models whose posterior is hard to fit."
    advice = ""
    if verdict != "good":
        advice = "compare models with compare_models(..., refine=True), not by their ELBO"
    return Finding("looseness of the ELBO", gap, verdict, reading, advice)


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
        advice = "" if verdict == "good" else "refine=True; more epochs"
        rows.append(Finding(f"error of {site}", error, verdict, reading, advice))
        side = "narrower" if ratio < 1 else "wider"
        verdict = grade(max(ratio, 1 / ratio), 1.25, 2.0)
        reading = f"The posterior of {site} is {side} than that of {reference}: {ratio:.2f} times."
        advice = "" if verdict == "good" else "refine=True for intervals"
        rows.append(Finding(f"width of {site}", ratio, verdict, reading, advice))
    return rows


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
