"""Finding the level of a column that a user means, whether given as a value or as its text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Number, Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.data.spelling import spelling

_INTEGER = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def several(value: object) -> bool:
    """Tell whether an object holds several values (a list, an array, a Series) rather than one."""
    return (
        isinstance(value, Iterable)
        and not isinstance(value, str | bytes)
        and getattr(value, "ndim", 1) != 0
    )


def listed(values: Any) -> list[Any]:
    """Return several values as a list, or a single one as a list of one.

    A dictionary or a data frame is one value, which is not a level: its keys or columns would be
    taken for values.
    """
    is_list = several(values) and not isinstance(values, Mapping | pd.DataFrame)
    return list(values) if is_list else [values]


def position_of(value: object, levels: Sequence[object]) -> int | None:
    """Find the level that a value means.

    Levels are kept as text, while users may give a value of the column's own type: a number, a
    truth value, a date. So the value itself is tried first, then its text, then its number: 0 means
    the level ``"0.0"`` of a column of floats, and ``"False"`` of one of truth values.

    Parameters
    ----------
    value
        A single value.
    levels
        Levels as text, or as values of a column.

    Returns
    -------
    The position of the level; ``None`` if there is no such level, or it could be several.
    """
    if several(value):
        return None
    value = value[()] if isinstance(value, np.ndarray) else value
    if value is pd.NA:
        return None
    for position, level in enumerate(levels):
        if type(level) is type(value) and level == value:
            return position
    texts = _texts(value)
    for position, level in enumerate(levels):
        if texts & _texts(level):
            return position
    number = _number(value, truth=True)
    if number is None:
        return None
    truth = not isinstance(value, str)
    numbers = [_number(level, truth=truth) for level in levels]
    found = [i for i, other in enumerate(numbers) if other is not None and other == number]
    if not found and number % 1:
        # A column of float32 holds 0.1 as 0.10000000149, which is what `tolist` makes of it.
        single = np.float32(number)
        found = [i for i, n in enumerate(numbers) if n is not None and np.float32(n) == single]
    return found[0] if len(found) == 1 else None


def codes_of(values: pd.Series, known: Sequence[str]) -> NDArray[np.int64]:
    """Return the position of each value among the known levels; -1 where it is not a level.

    Values are compared by their text first. Those that are not found, and are not text themselves,
    are compared by meaning: the same numbers may be integers in one file and floats in another, and
    the text of a date depends on the other dates in its column.

    Parameters
    ----------
    values
        Value of each cell.
    known
        Levels as text.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):  # a few categories, not all cells
        categories = values.cat.categories
        codes = _codes_of_texts(categories.astype(str), categories.to_series(), known)
        return np.append(codes, -1)[values.cat.codes.to_numpy()]  # a missing value has the code -1
    return _codes_of_texts(values.astype(str).to_numpy(dtype=object), values, known)


def _codes_of_texts(
    texts: NDArray[Any] | pd.Index, values: pd.Series, known: Sequence[str]
) -> NDArray[np.int64]:
    codes = pd.Index(known).get_indexer(texts).astype(np.int64)
    others = (codes < 0) & values.notna().to_numpy()
    if others.any():
        meant = {v: None if isinstance(v, str) else position_of(v, known) for v in values[others]}
        codes[others] = [-1 if meant[v] is None else meant[v] for v in values[others]]
    return codes


def suggestion(value: object, levels: Iterable[object]) -> str:
    """Return a question whether a similar level is meant; empty if there is none."""
    names = [str(level) for level in levels]
    key = spelling(str(value))
    similar = [name for name in names if spelling(name) == key]
    if not similar:
        close = get_close_matches(str(value), names, n=3, cutoff=0.75)
        # Donors 11 and 12, or CD4+ and CD4-, are different and not misspelt.
        similar = [name for name in close if _letters(name) != _letters(str(value))]
    return f" Do you mean {similar[0]!r}?" if similar else ""


def _letters(text: str) -> str:
    return "".join(character for character in text if character.isalpha())


def _texts(value: object) -> set[str]:
    """Return the texts of a value: its own, and its text as an entry of a column."""
    if isinstance(value, str | Number | np.bool_):
        return {str(value)}
    return {str(value), str(pd.Series([value]).astype(str).iloc[0])}  # these differ for dates


def _number(value: object, *, truth: bool) -> int | float | None:
    """Return a value, or the value of its text, as a number; truth values only if `truth`."""
    if isinstance(value, bool | np.bool_) or value in ("False", "True"):
        return int(str(value) == "True") if truth else None
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if not isinstance(value, str):
        return None
    if _INTEGER.fullmatch(value):
        return int(value)
    return float(value) if _DECIMAL.fullmatch(value) else None
