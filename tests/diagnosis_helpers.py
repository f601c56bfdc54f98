"""Measurements of a good model, and its diagnosis with some of them changed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from pyro_contrastive.analysis.diagnosis.findings import findings
from pyro_contrastive.analysis.diagnosis.measurements import Closeness, Measurements, Structure


def probe_of(excess: float) -> dict[str, float | str]:
    accuracy = 0.5 + excess / 2
    return {
        "probe": "linear",
        "balanced_accuracy": accuracy,
        "auc": accuracy,
        "chance": 0.5,
        "upper_chance": 0.55,
        "p_value": 0.05,
        "excess": excess,
        "mixing": 1 - excess,
    }


def usage(n_z: int = 3, n_s: int = 3) -> pd.DataFrame:
    rows = [("background", k, k < n_z) for k in range(4)]
    rows += [("salient", k, k < n_s) for k in range(4)]
    return pd.DataFrame(rows, columns=["latent", "dimension", "used"])


def closeness(k: float = 0.3, elbo: float = -301.0, log_p: float = -300.0) -> Closeness:
    return Closeness(np.full(20, k), elbo, log_p)


GOOD = Measurements(
    usage=usage(),
    salient_nats=50.0,
    condition_in_x=probe_of(0.9),
    condition_in_z=probe_of(0.05),
    condition_in_s=probe_of(0.95),
    structure=Structure(0.3, 3),
    guide=closeness(),
    refined=closeness(elbo=-300.5),
    n_draws=400,
    shared_in_s={"cell_type": probe_of(0.1)},
    elbo=np.concatenate([np.linspace(500, 300, 50), np.full(50, 300.0)]),
)


def table_of(**changes: Any) -> pd.DataFrame:
    rows = [dataclasses.asdict(row) for row in findings(dataclasses.replace(GOOD, **changes))]
    return pd.DataFrame(rows).set_index("diagnostic")
