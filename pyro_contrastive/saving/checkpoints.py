"""The checkpoints of a run: when they are written, which are kept, which one is continued."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive.saving.checkpoint_files import (
    Checkpoint,
    OtherVersionError,
    all_in,
    n_epochs_of,
    read_checkpoint,
    remove_leftovers,
    write_checkpoint,
)
from pyro_contrastive.saving.folder import versions

if TYPE_CHECKING:  # it imports Lightning, which only training needs
    from pyro_contrastive.training.epochs import State

N_KEPT = 2
"""Number of checkpoints kept: if the last one is damaged, there is one before it."""
_FOR_DIGITS = ("python", "torch", "pyro-ppl", "numpy", "scipy", "numba")
"""Packages on whose versions the last digits of a result may depend."""


@dataclass(frozen=True)
class Interval:
    """How often checkpoints are written.

    Parameters
    ----------
    minutes
        At the end of the first epoch after so many minutes.
    epochs
        After every so many epochs, instead.
    """

    minutes: float = 10.0
    epochs: int | None = None


class CheckpointFolder:
    """Where a run writes its checkpoints, and the state it continues from.

    Parameters
    ----------
    folder
        The folder; made if it does not exist.
    interval
        How often to write.
    identity
        What identifies model, data and training: a table of JSON for each.
    fixed
        What is written in every checkpoint besides the state of the run.
    resumed
        The checkpoint to continue from and its place. Default: start anew.
    """

    def __init__(
        self,
        folder: Path,
        interval: Interval,
        identity: Mapping[str, Mapping[str, Any]],
        fixed: Mapping[str, Any],
        resumed: tuple[Path, Checkpoint] | None = None,
    ) -> None:
        self.folder, self.interval = folder, interval
        self.identity, self.fixed = identity, fixed
        self._kept: list[str] = []  # names of this run's checkpoints
        if resumed is not None and resumed[0].parent.resolve() == folder.resolve():
            self._kept = [resumed[0].name]
        self._resumed = None if resumed is None else resumed[1]
        self._written_at = time.monotonic()

    @property
    def resumed(self) -> State | None:
        """The state of the run to continue from."""
        return None if self._resumed is None else self._resumed.content["run"]

    def is_due(self, n_epochs: int, *, is_last: bool) -> bool:
        """Return whether to write one: at the beginning, at the end, and at intervals."""
        if is_last or n_epochs == 0:
            return True
        if self.interval.epochs is not None:
            return n_epochs % self.interval.epochs == 0
        return time.monotonic() - self._written_at >= 60 * self.interval.minutes

    def write(self, state: State, n_epochs: int, *, is_last: bool) -> None:
        """Write a checkpoint; if that is impossible, there is a warning, and training goes on."""
        content = {"run": state, **self.fixed}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            path = write_checkpoint(self.folder, n_epochs, self.identity, content, is_last=is_last)
            self._keep(path)
        except OSError as error:
            warnings.warn(
                f"No checkpoint could be written to {self.folder} after {n_epochs} epochs: "
                f"{error}. Training goes on; if it is killed, only an earlier checkpoint can be "
                "continued.",
                UserWarning,
                stacklevel=7,
            )
        self._written_at = time.monotonic()

    def _keep(self, path: Path) -> None:
        """Delete all checkpoints but the last ones of this run."""
        others = [name for name in self._kept if name != path.name]
        self._kept = [*others, path.name][-N_KEPT:]
        for each in all_in(self.folder):
            if each.name not in self._kept:
                shutil.rmtree(each)


def find_checkpoint(folder: Path) -> tuple[Path, Checkpoint]:
    """Read the last checkpoint in a folder, or with a warning the one before if it is damaged.

    Raises
    ------
    FileNotFoundError
        If there is none.
    InvalidFileError
        If all are damaged.
    OtherVersionError
        If it was written by another version of the library.
    """
    problems = []
    for path in all_in(folder):
        try:
            found = read_checkpoint(path)
        except OtherVersionError:
            raise
        except (InvalidFileError, OSError) as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(
                f"{' '.join(problems)} Continuing from {path} instead.", UserWarning, stacklevel=4
            )
        _warn_of_versions(path, found)
        return path, found
    if problems:
        msg = f"No checkpoint in {folder} can be read. {' '.join(problems)}"
        raise InvalidFileError(msg)
    msg = f"There is no checkpoint in {folder}: to begin a run, use checkpoint= without resume=."
    raise FileNotFoundError(msg)


def refuse_unfinished(folder: Path) -> None:
    """Refuse to begin a run in a folder with checkpoints of one that has not ended.

    Raises
    ------
    FileExistsError
        If there are any.
    NotADirectoryError
        If the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file; checkpoints need a folder."
        raise NotADirectoryError(msg)
    there = [path for path in all_in(folder) if n_epochs_of(path)]
    if not there:
        return
    try:
        has_ended = read_checkpoint(there[0]).is_last
    except (ValueError, OSError):
        has_ended = False
    if not has_ended:
        msg = (
            f"{folder} holds checkpoints of a run that did not end ({there[0].name}). To continue "
            "it, use resume= with the same folder; otherwise delete them, or choose another folder."
        )
        raise FileExistsError(msg)


def refuse_other(path: Path, found: Checkpoint, identity: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a checkpoint of another model, of other data, or of a training with other settings.

    Raises
    ------
    ValueError
        If it is; names what differs, with both values if they are short.
    """
    for group, now in identity.items():
        before = found.identity.get(group, {})
        names = [n for n in {**before, **now} if before.get(n) != now.get(n)]
        if names:
            what = "; ".join(_difference(n, before.get(n), now.get(n)) for n in names)
            msg = (
                f"{path} is a checkpoint of another {group}, and cannot be continued: {what}. Give "
                "model and train() what they had, or begin anew in another folder."
            )
            raise ValueError(msg)


_SHORT = 60


def _difference(name: str, before: object, now: object) -> str:
    texts = [repr(value) for value in (before, now)]
    if max(map(len, texts)) > _SHORT:
        return f"{name} differs"
    return f"{name} was {texts[0]} and is {texts[1]}"


def _warn_of_versions(path: Path, found: Checkpoint) -> None:
    now = versions()
    other = [n for n in _FOR_DIGITS if found.versions.get(n) != now.get(n)]
    if other:
        was = ", ".join(f"{name} {found.versions.get(name)}" for name in other)
        warnings.warn(
            f"{path} was written with {was}; now it is "
            f"{', '.join(f'{name} {now.get(name)}' for name in other)}. The run goes on, but its "
            "last digits may differ from those of an uninterrupted one.",
            UserWarning,
            stacklevel=4,
        )
