"""The finding on training: whether it settled or overfitted, and which weights were kept."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pyro_contrastive.analysis.diagnosis.measurements import Finding, Measurements, Verdict

__all__ = ["UNTRAINED", "training_findings"]

FEWEST = 5
"""Fewest epochs from which to judge."""
STILL_FALLING, WORSE = 0.01, 0.03
"""Shares of the whole fall of the negative ELBO: above the first, brought by the last tenth of the
epochs, it is still falling; above the second, risen since the minimum, it has got worse."""
HELD_OUT = "elbo_validation"

UNTRAINED = Finding(
    "training",
    0.0,
    "bad",
    "The model has not been trained by train(): unless you trained its module yourself, everything "
    "here is about random weights.",
    "train()",
)


def training_findings(measured: Measurements) -> list[Finding]:
    """Explain the curve of the negative ELBO, and say which epoch's weights the model has."""
    by_epoch = pd.Series(measured.elbo, dtype=float)
    by_epoch = by_epoch[np.isfinite(by_epoch)]
    elbo = by_epoch.to_numpy()
    if len(elbo) < FEWEST:
        return []
    fall = max(float(elbo[0] - elbo.min()), 1e-9)
    risen = float(elbo[-1] - elbo.min()) / fall
    if risen > WORSE:
        return [_overfitted(by_epoch, fall, risen, measured.restored_epoch)]
    tenth = max(1, len(elbo) // 10)
    late = float(elbo[-2 * tenth : -tenth].mean() - elbo[-tenth:].mean()) / fall
    verdict: Verdict = "good" if late <= STILL_FALLING else "look"
    words = "has settled" if verdict == "good" else "is still falling"
    reading = (
        f"The negative ELBO {words}: the last tenth of training brought {late:.1%} of its fall."
    )
    if measured.restored_epoch is not None:
        reading += f" The weights of epoch {measured.restored_epoch} (from 0) were put back."
    return [Finding("training", late, verdict, reading, "" if verdict == "good" else "more epochs")]


def _overfitted(by_epoch: pd.Series, fall: float, risen: float, restored: int | None) -> Finding:
    """Say when it was best, and whether the weights of that epoch were put back."""
    best = by_epoch.idxmin()
    which = "held-out " if by_epoch.name == HELD_OUT else ""
    reading = (
        f"Overfitted: the {which}negative ELBO was best at epoch {best} (counted from 0 to "
        f"{by_epoch.index[-1]}) and has risen by {risen:.0%} of its fall since; "
    )
    if restored == best:
        reading += "the weights of that epoch were put back."
        return Finding("training", risen, "good", reading)
    if restored is None:
        reading += "the weights of that epoch were not put back."
        return Finding("training", risen, "bad", reading, "early_stopping=True; fewer epochs")
    reading += f"the weights of epoch {restored} were put back."
    excess = (float(by_epoch.get(restored, np.inf)) - float(by_epoch.min())) / fall
    verdict: Verdict = "good" if excess <= WORSE else "bad"
    return Finding("training", risen, verdict, reading, "" if verdict == "good" else "fewer epochs")
