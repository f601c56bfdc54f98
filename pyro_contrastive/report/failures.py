"""Failures to make a result, worded for the shell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["KeptElsewhere", "ResultsError", "is_full_disk", "message_of"]

_MAX_CHARACTERS = 300


class ResultsError(RuntimeError):
    """Some results of a fit could not be made; the others were written.

    Parameters
    ----------
    failures
        Results that could not be made, with the reason: a sentence each.
    kept
        The results that exist, and where they are.
    """

    def __init__(self, failures: Sequence[str], kept: str) -> None:
        super().__init__(" ".join([*failures, kept]))
        self.failures = list(failures)
        self.kept = kept


class KeptElsewhere(Exception):  # noqa: N818 -- says what has happened
    """Something could not be written where it belongs, and was written elsewhere."""


def message_of(error: BaseException) -> str:
    """Return an exception's message on one line, or its type if it has none."""
    if isinstance(error, KeptElsewhere):
        return str(error)
    if isinstance(error, MemoryError):
        return "there was not enough memory"
    if is_full_disk(error):
        return "no space is left on the disk"
    notes = getattr(error, "__notes__", [])  # anndata says there which element it was
    text = " ".join("; ".join([str(error).rstrip("."), *notes]).split())
    if type(error) is not Exception and not isinstance(error, OSError | ValueError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    text = text or type(error).__name__
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


def is_full_disk(error: BaseException) -> bool:
    """Tell whether an exception means that a disk or a quota is full."""
    signs = ("No space left on device", "Disk quota exceeded", "errno = 28", "errno = 122")
    return any(sign in str(each) for each in _chain(error) for sign in signs)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception and those that it was raised from."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__
