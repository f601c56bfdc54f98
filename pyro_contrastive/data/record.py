"""Reading the record that ``setup_anndata`` leaves in an AnnData, which others may have changed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_NAMES = (
    *("layer", "batch_key", "labels_key", "size_factor_key", "condition_key", "background"),
    "sample_key",
)
_LISTS = ("categorical_covariate_keys", "continuous_covariate_keys", "genes")
_OTHERS = ("categories", "size_factor_unit")
_REQUIRED = ("genes", "categories")


def read_record(record: object, where: str) -> dict[str, Any]:
    """Read a record, refusing one that is damaged or has entries this version does not know.

    Parameters
    ----------
    record
        JSON, as text.
    where
        Where it is, for the error.

    Raises
    ------
    ValueError
        If it is not what ``setup_anndata`` of this version writes.
    """
    values, fault = _parsed(record)
    unknown = sorted(set(values) - {*_NAMES, *_LISTS, *_OTHERS})
    if not fault and unknown:
        msg = (
            f"{where} has {unknown[0]!r}, which this version of pyro-contrastive does not know: it "
            "is of a later version. Use that version, or call ContrastiveVI.setup_anndata again."
        )
        raise ValueError(msg)
    fault = fault or _fault(values)
    if fault:
        msg = (
            f"{where}, the record that setup_anndata left, is damaged: {fault}. Call "
            "ContrastiveVI.setup_anndata(adata, ...) again."
        )
        raise ValueError(msg)
    return values


def _parsed(record: object) -> tuple[dict[str, Any], str]:
    """Return the entries, and what is wrong with the record as a whole."""
    if not isinstance(record, str):
        return {}, f"it is a {type(record).__name__}, not text"
    try:
        values = json.loads(record)
    except (ValueError, RecursionError):
        return {}, "it is not JSON"
    is_table = isinstance(values, dict)
    return (values, "") if is_table else ({}, f"it holds a {type(values).__name__}, not a table")


def _fault(values: Mapping[str, Any]) -> str:
    """Describe the first thing that is wrong with the entries; empty if nothing is."""
    missing = [name for name in _REQUIRED if name not in values]
    if missing:
        return f"it has no {missing[0]!r}"
    for name in _NAMES:
        if not isinstance(values.get(name), str | None):
            return f"{name!r} is not a name"
    for name in _LISTS:
        if not _are_names(values.get(name, [])):
            return f"{name!r} is not a list of names"
    unit = values.get("size_factor_unit", 1.0)
    is_number = isinstance(unit, int | float) and not isinstance(unit, bool)
    if not (is_number and math.isfinite(unit) and unit > 0):
        return "'size_factor_unit' is not a positive number"
    return _fault_of_categories(values) or ("" if values["genes"] else "it names no genes")


def _fault_of_categories(values: Mapping[str, Any]) -> str:
    categories = values["categories"]
    if not isinstance(categories, dict) or not all(map(_are_names, categories.values())):
        return "'categories' is not a table of lists of names"
    condition, background = values.get("condition_key"), values.get("background")
    keys = [values.get("batch_key"), values.get("labels_key"), condition]
    for key in [*keys, *values.get("categorical_covariate_keys", [])]:
        if key is not None and not categories.get(key):
            return f"it has no categories of {key!r}"
    if condition is not None and categories[condition][0] != background:
        return f"its background, {background!r}, is not the first category of {condition!r}"
    return ""


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
