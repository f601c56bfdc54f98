"""What became of an odd input: refused clearly, answered rightly, or neither."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro_contrastive

PACKAGE = str(Path(pyro_contrastive.__file__).parent)
CLEAR, RIGHT, UNCLEAR, SILENT, WRONG = "clear error", "right", "unclear", "silent", "wrong"
OUTCOMES = (CLEAR, RIGHT, UNCLEAR, SILENT, WRONG)
ERRORS = (ValueError, TypeError, KeyError, FileNotFoundError, FileExistsError)
LONGEST = 1200


@dataclass(frozen=True)
class Case:
    """One odd input.

    Parameters
    ----------
    area
        The part of the library that is given it.
    label
        The call, for the table.
    call
        Makes the call, and returns its result.
    words
        The message of an error, or of a warning, must hold one of these.
    expect
        ``"error"``; ``"warning"``; ``"either"``: an error, or a result without one; or a function
        of the result that tells whether it is right.
    """

    area: str
    label: str
    call: Callable[[], Any]
    words: tuple[str, ...]
    expect: str | Callable[[Any], bool] = "error"


def judge(case: Case) -> tuple[str, str]:
    """Make the call of a case; return what became of it, and the message or result."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = case.call()
        except Exception as error:  # any of them is what we look for
            return _of_error(error, case), _one_line(error)
    said = [str(each.message) for each in caught if each.category is UserWarning]
    if case.expect in {"warning", "error"}:
        heard = any(word in text for text in said for word in case.words)
        outcome = RIGHT if heard and case.expect == "warning" else SILENT
        return outcome, f"{_short(result)} {' | '.join(said)}"
    if case.expect == "either":
        return RIGHT, _short(result)
    assert callable(case.expect)
    try:
        return (RIGHT if case.expect(result) else WRONG), _short(result)
    except Exception as error:  # a result of another kind
        return WRONG, f"{_short(result)}: {_one_line(error)}"


def _of_error(error: BaseException, case: Case) -> str:
    """Tell whether an error is the library's own, and says what is wrong."""
    frames = traceback.extract_tb(error.__traceback__)
    is_ours = frames[-1].filename.startswith(PACKAGE)
    text = str(error)
    # Python itself names an argument that does not exist.
    is_ours = is_ours or "unexpected keyword argument" in text or "required positional" in text
    named = any(word in text for word in case.words)
    readable = len(text) <= LONGEST
    return CLEAR if is_ours and named and readable and isinstance(error, ERRORS) else UNCLEAR


def _one_line(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{type(error).__name__} ({where}): {' '.join(str(error).split())[:300]}"


def _short(result: object) -> str:
    shape = getattr(result, "shape", "")
    text = " ".join(repr(result).split())[:60]
    return f"{type(result).__name__}{shape} {text}"
