"""Which of several processes that train together writes files: the first."""

from __future__ import annotations

_rank = 0


def note_rank(rank: int) -> None:
    """Remember the place of this process among those that train together, counted from 0."""
    global _rank  # noqa: PLW0603  # of the process, as long as it lives
    _rank = rank


def is_first_process() -> bool:
    """Return whether this process writes: it is the first, or trains on its own."""
    return _rank == 0
