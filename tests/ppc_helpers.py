"""A posterior predictive check by keywords, for tests that give few of its inputs each."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pyro_contrastive.analysis.ppc import (
    CheckedData,
    CheckSettings,
    PosteriorPredictiveCheck,
    check_against_replicates,
)


def checked(values: Any, replicates: Any, **given: Any) -> PosteriorPredictiveCheck:
    """Compare data with replicates; fields of `CheckedData` and `CheckSettings` as keywords."""
    made = []
    for kind in (CheckedData, CheckSettings):
        names = {field.name for field in fields(kind)} & set(given)
        chosen = {name: given.pop(name) for name in names}
        made.append(kind(values, **chosen) if kind is CheckedData else kind(**chosen))
    return check_against_replicates(made[0], replicates, made[1], **given)
