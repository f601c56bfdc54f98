"""A progress bar over cells, for work that takes more than a few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from pyro_contrastive._tools.settings import settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

DELAY = 3.0
"""Seconds of work before a bar appears: quick calls show none."""

clock = time.monotonic


def stderr_console() -> Console:
    """Return a separate console, so that the bar can be drawn next to another rich bar."""
    from rich.console import Console  # noqa: PLC0415  # slow, and quick calls draw nothing

    return Console(stderr=True)


class CellBar:
    """Counts cells done, and draws a bar on stderr once the work has taken long enough.

    It is drawn in a terminal or a notebook only, not into a log file. The bar disappears when the
    work is done.

    Parameters
    ----------
    description
        Text that describes the work.
    n_cells
        Number of cells to process.
    silent
        Never draw. ``settings.progress_bars = False`` does the same everywhere.
    """

    def __init__(self, description: str, n_cells: int, *, silent: bool = False) -> None:
        self._description = description
        self._n_cells = n_cells
        self._wanted = settings.progress_bars and not silent
        self._done = 0
        self._start = clock()
        self._progress: Progress | None = None

    def advance(self, n_cells: int) -> None:
        """Count some cells as done."""
        self._done += n_cells
        if self._progress is None and self._is_due():
            self._draw()
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=self._done)

    def close(self) -> None:
        """Remove the bar, if there is one."""
        if self._progress is not None:
            self._progress.stop()

    def _is_due(self) -> bool:
        return self._wanted and self._done < self._n_cells and clock() - self._start >= DELAY

    def _draw(self) -> None:
        from rich.progress import (  # noqa: PLC0415  # slow to import, and quick calls draw nothing
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        console = stderr_console()
        if not (console.is_interactive or console.is_jupyter):
            self._wanted = False
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("cells"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True)
        self._progress.add_task(self._description, total=self._n_cells, completed=self._done)
        self._progress.start()


_current: ContextVar[CellBar | None] = ContextVar("current_bar", default=None)


@contextmanager
def progress(description: str, n_cells: int, *, silent: bool = False) -> Iterator[None]:
    """Show the progress of the mini-batches that are run inside.

    Parameters
    ----------
    description, n_cells, silent
        See :class:`CellBar`. A cell counts in `n_cells` as often as it is run.
    """
    bar = CellBar(description, n_cells, silent=silent)
    token = _current.set(bar)
    try:
        yield
    finally:
        _current.reset(token)
        bar.close()


@contextmanager
def counted(n_cells: int) -> Iterator[CellBar]:
    """Return the bar to count `n_cells` cells on: the enclosing one, or else a new one."""
    outer = _current.get()
    if outer is not None:
        yield outer
        return
    bar = CellBar("Cells", n_cells)
    try:
        yield bar
    finally:
        bar.close()
