"""A progress bar over epochs."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pyro_contrastive._tools.settings import settings


class EpochBar:
    """Shows the epoch, the losses and the time left, in a terminal or a notebook.

    Parameters
    ----------
    max_epochs
        Number of epochs.
    n_done
        Number of those that are done, if a run is continued.
    show
        Whether to show the bar; ``settings.progress_bars = False`` hides it too.
    """

    def __init__(self, max_epochs: int, n_done: int = 0, *, show: bool) -> None:
        columns = (
            TextColumn("Epoch {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, disable=not (show and settings.progress_bars))
        self._task = self._progress.add_task(
            "training", total=max_epochs, completed=n_done, losses=""
        )

    def __enter__(self) -> Self:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop drawing; the bar stays on the screen."""
        if not self._progress.disable:  # before rich 14.3 a disabled bar still printed a newline
            self._progress.stop()

    def stop_early(self, best_epoch: int | None) -> None:
        """Show that training stopped before the last epoch."""
        text = f"stopped early, back to epoch {best_epoch} (counted from 0)"
        self._progress.update(self._task, losses=text)

    def advance(self, values: Mapping[str, float]) -> None:
        """Advance by one epoch, and show its losses."""
        names = {"elbo_train": "train", "elbo_validation": "held out"}
        parts = [f"{label} {values[n]:.1f}" for n, label in names.items() if n in values]
        losses = f"-ELBO per pair: {', '.join(parts)}"
        self._progress.update(self._task, advance=1, losses=losses)
