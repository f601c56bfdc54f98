"""Findings on training: whether it settled, which weights were kept, which cells trained."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.analysis.diagnosis.measurements import Finding, Measurements, Verdict
from pyro_contrastive.cells import BACKGROUND

__all__ = ["UNTRAINED", "cells_finding", "training_findings"]

Indices = NDArray[np.int64]

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


def cells_finding(
    condition: NDArray[np.int64], cells: Indices, trained: Indices | None, *, is_asked: bool
) -> Finding:
    """Say of which cells a diagnosis is.

    Parameters
    ----------
    condition
        Condition code of every cell of the data.
    cells, trained
        Those measured, and those that trained; ``None`` if that is not known.
    is_asked
        Whether the user chose them.
    """
    n_target = int((condition[cells] != BACKGROUND).sum())
    sizes = f"{len(cells) - n_target} background and {n_target} target cells"
    if trained is None:
        reading = f"Measured on {sizes}; it is not known whether they trained the model."
        return Finding("cells", len(cells), "look", reading, "indices= of cells that are new to it")
    n_seen = int(np.isin(cells, trained).sum())
    if not n_seen:
        reading = f"Measured on {sizes} that did not train the model."
        return Finding("cells", len(cells), "good", reading)
    why = "" if is_asked else ", because too few did not"
    reading = (
        f"Measured on {sizes}, of which {n_seen} trained the model{why}: everything looks better "
        "than it is."
    )
    advice = "indices=model.held_out_indices" if is_asked else "a smaller train_size"
    return Finding("cells", len(cells), "look", reading, advice)
