"""The table of a test of means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.analysis.means.settings import MeansSettings
from pyro_contrastive.analysis.means.sex_genes import is_sex_linked

__all__ = ["SEX_NOTE", "reason_not_tested", "result_table", "with_fdr", "with_notes"]

Array = NDArray[np.float64]
LOG_2 = float(np.log(2))
SEX_NOTE = "sex-linked: donors of different sex?"


def reason_not_tested(n_counts: Array, fewest_counts: int) -> NDArray[np.object_]:
    """Return why genes with this many counts are not tested; empty where they are."""
    few = f"fewer than {fewest_counts} counts"
    reason = np.where(n_counts >= fewest_counts, "", few).astype(object)
    reason[n_counts == 0] = "no counts"
    return reason


def result_table(
    value: Array,
    standard_error: Array,
    quantile: float | Array,
    p_value: Array,
    reason: NDArray[np.object_],
    others: Mapping[str, Any],
) -> pd.DataFrame:
    """Put the results of all genes in a table; NaN where there is a reason not to test.

    Parameters
    ----------
    value, standard_error
        Natural log ratio, ``[genes]``.
    quantile
        Half the width of the interval, in standard errors.
    p_value, reason
        ``[genes]``.
    others
        Further columns: means, and numbers of cells, strata and donors used.
    """
    tested = reason == ""
    numbers = {
        "lfc": value / LOG_2,
        "lfc_se": standard_error / LOG_2,
        "lower": (value - quantile * standard_error) / LOG_2,
        "upper": (value + quantile * standard_error) / LOG_2,
        "p_value": p_value,
    }
    kept = {name: np.where(tested, column, np.nan) for name, column in numbers.items()}
    return pd.DataFrame(kept | dict(others) | {"not_tested": reason})


def with_fdr(table: pd.DataFrame, settings: MeansSettings) -> pd.DataFrame:
    """Add p-values adjusted by Benjamini and Hochberg over all tests made."""
    from scipy.stats import false_discovery_control  # noqa: PLC0415  # slow to import

    p = table["p_value"].to_numpy()
    there = np.isfinite(p)
    adjusted = np.full(len(p), np.nan)
    if there.any():
        adjusted[there] = false_discovery_control(p[there])
    at = list(table.columns).index("p_value") + 1
    table.insert(at, "p_adj", adjusted)
    table.insert(at + 1, f"is_de_fdr_{settings.fdr_target}", adjusted <= settings.fdr_target)
    return table


def with_notes(table: pd.DataFrame, settings: MeansSettings) -> pd.DataFrame:
    """Add a column that points to tagged genes which tell the sexes apart; indexed by gene."""
    tagged = table[f"is_de_fdr_{settings.fdr_target}"].to_numpy()
    notes = np.where(tagged & is_sex_linked(table.index), SEX_NOTE, "")
    return table.assign(note=notes)
