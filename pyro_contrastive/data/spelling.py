"""Levels of a column that are probably one level, spelled in two ways."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")  # 1E2 is a well, and not 100
_INTEGER = re.compile(r"[+-]?[0-9]+")
_MINUS = "-\N{MINUS SIGN}"
_OTHER_MARKS = _MINUS + "."
_MARKS = {"Zs", "Zl", "Zp", "Cc", "Cf", "Pc", "Pd"}
"""Unicode categories that are ignored: white space, dashes, underscores, invisible ones."""
_LISTED = 10


def spelling(text: str) -> str:
    """Return a text without case, white space, dashes, underscores and dots.

    Two levels for which it is the same probably mean the same. A separator between two digits is
    kept (1_11 is not 11_1), and so is a sign or decimal point before a number, and a minus at the
    end (CD4-).
    """
    for _ in range(2):  # casefold may leave something to normalise, and the other way round
        text = unicodedata.normalize("NFKC", text).casefold()
    if _NUMBER.fullmatch(text.strip()):
        # 1, 1.0 and 01 are the same; but not two long integers that a float cannot tell apart.
        return str(int(text)) if _INTEGER.fullmatch(text.strip()) else _number(text)
    runs = [(marks, "".join(run)) for marks, run in groupby(text, _is_mark)]
    kept = ""
    for position, (marks, run) in enumerate(runs):
        after = runs[position + 1][1] if position + 1 < len(runs) else ""
        kept += _kept_marks(run, kept, after) if marks else run
    return kept


def _kept_marks(run: str, before: str, after: str) -> str:
    """Return the marks between two parts of a text that change its meaning."""
    if not after:
        return "-" if run in _MINUS else ""
    if run[0] in _MINUS and run[1:].isspace():
        return "-"  # CD4- T
    if not after[0].isdecimal():
        return ""
    if run[-1] in _OTHER_MARKS and (run[-2:-1].isspace() or not before):
        return "." if run[-1] == "." else "-"
    return " " if before[-1:].isdecimal() else ""


def _number(text: str) -> str:
    number = float(text)
    return str(int(number)) if number.is_integer() else repr(number)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in _MARKS or character in _OTHER_MARKS


def spelled_alike(levels: Iterable[str]) -> list[list[str]]:
    """Return the levels that differ in spelling only, in groups of two or more."""
    groups: dict[str, list[str]] = {}
    for level in levels:
        groups.setdefault(spelling(level), []).append(level)
    return [group for group in groups.values() if len(group) > 1]


def warn_of_spellings(
    columns: Mapping[str, NDArray[np.str_]], condition_key: str | None, background: str | None
) -> None:
    """Warn of levels that are probably one level spelled in two ways, column by column.

    Two calls below `setup_anndata`.

    Parameters
    ----------
    columns
        By key, the level of each cell as text, ``[cells]``.
    condition_key, background
        The column that is the condition, and its background level.
    """
    for key, values in columns.items():
        names, counts = np.unique(values, return_counts=True)
        sizes = dict(zip(names.tolist(), counts.tolist(), strict=True))
        groups = spelled_alike(sizes)
        if not groups:
            continue
        control = background if key == condition_key else None
        shown = "; ".join(
            " and ".join(f"{level!r} ({_cells(sizes[level])})" for level in group)
            for group in groups[:_LISTED]
        )
        warnings.warn(
            f"adata.obs[{key!r}] has levels that differ only in case, white space or marks such as "
            f"_ and -: {shown}{' ...' if len(groups) > _LISTED else ''}. Each is treated as a "
            f"level of its own.{_taken_for_target(groups, sizes, control)} If they mean the same, "
            "give them one name and set the data up again: "
            f"{_renaming(key, groups, sizes, control)}",
            UserWarning,
            stacklevel=4,
        )


def _cells(n: int) -> str:
    return f"{n} cell{'s' * (n != 1)}"


def _taken_for_target(
    groups: list[list[str]], sizes: Mapping[str, int], background: str | None
) -> str:
    """Describe the cells that are target cells although they look like background cells."""
    alike = [name for group in groups if background in group for name in group]
    others = [name for name in alike if name != background]
    if not others:
        return ""
    n_cells = sum(sizes[name] for name in others)
    return (
        f" Only {background!r} is the background: the {_cells(n_cells)} of "
        f"{' and '.join(map(repr, others))} are target cells, as if they had been treated."
    )


def _renaming(
    key: str, groups: list[list[str]], sizes: Mapping[str, int], background: str | None
) -> str:
    """Return the line of Python that gives the levels of each group one name."""
    names: dict[str, str] = {}
    for group in groups:
        kept = background if background in group else max(group, key=lambda level: sizes[level])
        names |= {level: str(kept) for level in group if level != kept}
    some = ", ".join(f"{old!r}: {new!r}" for old, new in list(names.items())[:_LISTED])
    more = ", ..." if len(names) > _LISTED else ""
    return f"adata.obs[{key!r}] = adata.obs[{key!r}].astype(str).replace({{{some}{more}}})"
