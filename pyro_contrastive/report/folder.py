"""The results folder: reserved before any work starts, and updated in one step at the end."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from pyro_contrastive._tools.atomic import tidy
from pyro_contrastive._tools.litter import is_litter
from pyro_contrastive._tools.unfinished import Unfinished, give_up_token, new_token
from pyro_contrastive.report.earlier_run import (
    MANIFEST,
    NOTE,
    earlier_entries,
    files_below,
    manifest_of,
)
from pyro_contrastive.report.genes import NULL_FILE, TABLES
from pyro_contrastive.report.publish import put_in_place

__all__ = ["ResultsFolder", "interrupts_wait", "reserve_folder"]


class ResultsFolder:
    """A folder reserved for one run.

    Files are made in :attr:`new`, a folder within it. :meth:`publish` puts them in the place of an
    earlier run's, or leaves everything as it was.

    Parameters
    ----------
    out
        The folder; made, with its parents, if it does not exist.
    name
        Stem of the ``.h5ad`` file that is going to be written.
    overwrite
        Whether an earlier run's files in it may be replaced.
    source
        The file that is read, which must not be deleted. Default: none.
    killed
        What a killed run left in the folder, which this run continues. Default: a new run.

    Raises
    ------
    FileExistsError
        If it is not empty and `overwrite` is not set, if a result would replace a file that no run
        has written, or if another run is writing into it.
    NotADirectoryError
        If it is a file.
    OSError
        If it cannot be written into.
    """

    def __init__(
        self,
        out: str | Path,
        name: str,
        *,
        overwrite: bool,
        source: Path | None = None,
        killed: Path | None = None,
    ) -> None:
        self.given = Path(out)
        self.path = _resolved(self.given)
        self.overwrite = overwrite
        self.targets = {
            "index.html",
            "scores.csv",
            "latents.csv",
            "figures",
            "model",
            MANIFEST,
            NOTE,
        }
        self.targets |= {f"{name}.h5ad", NULL_FILE, *TABLES.values()}
        self.data_bytes = 0  # of the .h5ad file, once that has been tried
        self._keep_staging = self._is_published = False
        self._killed = None if killed is None else _resolved(killed)
        self._check(source)
        self._created = [p for p in (self.path, *self.path.parents) if not p.exists()]
        self._token = new_token()
        self.staging = self.path / f".{self._token}"
        self._open()

    @property
    def new(self) -> Path:
        """Where this run's files are made."""
        return self.staging / "new"

    @property
    def checkpoints(self) -> Path:
        """Where the training writes its checkpoints; deleted when the results are in place."""
        return self.staging / "checkpoints"

    def renew(self) -> None:
        """Make the folder again if it was deleted during the training."""
        self.new.mkdir(parents=True, exist_ok=True)

    @property
    def earlier(self) -> list[str]:
        """Names of the entries that would be replaced now."""
        if not self.overwrite or not self.path.is_dir():
            return []
        others = Unfinished.all_in(self.path)
        unfinished = [run.path.name for run in others if not run.may_be_live()]
        return [*earlier_entries(self.path), *unfinished]

    def free_bytes(self) -> int:
        """Free space on its disk."""
        return shutil.disk_usage(self.new).free

    def publish(self) -> None:
        """Put this run's files into place, and delete those of the earlier run.

        Raises
        ------
        OSError
            If that fails; every file of the earlier run is then where it was.
        """
        files = files_below(self.new)
        try:
            (self.new / MANIFEST).write_text(manifest_of(files), encoding="utf-8")
        except OSError:  # on a full disk the results matter more than their list
            (self.new / MANIFEST).unlink(missing_ok=True)
        with interrupts_wait():
            put_in_place(self.new, self.path, self.earlier, self.staging / "old")
            self._is_published = True

    def set_aside(self) -> Path:
        """Keep this run's files in a separate folder next to the earlier run's; return it."""
        aside = self.path / f"new_results_{self.staging.name[-8:]}"
        try:
            os.rename(self.new, aside)
        except OSError:
            self._keep_staging = True
            return self.new
        self._is_published = True
        return aside

    def close(self) -> None:
        """Delete temporary files, and the folder if nothing was written into it."""
        give_up_token(self._token)
        # A continued run that fails once more, for example on changed data, can still be continued.
        if self._keep_staging or (self._killed is not None and not self._is_published):
            return
        shutil.rmtree(self.staging, ignore_errors=True)
        if not self._is_published:
            for folder in self._created:
                with suppress(OSError):  # it is not empty: something else uses it
                    folder.rmdir()
        if self.staging.exists():
            warnings.warn(
                f"{self.staging} could not be deleted; nothing in it is needed.",
                UserWarning,
                stacklevel=2,
            )

    def _check(self, source: Path | None) -> None:
        if source is not None and source.is_dir() and self.path.is_relative_to(_resolved(source)):
            raise FileExistsError(
                f"{self.given} is inside the data {source}; choose another folder"
            )
        if not self.path.exists():
            if self.given.is_symlink():
                raise NotADirectoryError(f"{self.given} is a broken link")
            return
        if not self.path.is_dir():
            raise NotADirectoryError(f"{self.given} is a file; the results need a folder")
        self._check_other_runs()
        found = [p for p in self.path.iterdir() if p != self._killed]
        there = sorted(p.name for p in found if not is_litter(p.name))
        if there and not self.overwrite:
            raise FileExistsError(
                f"folder {self.given} is not empty; choose another one, or allow overwriting "
                "(--overwrite)"
            )
        earlier = self.earlier
        own = sorted(self.targets.intersection(there) - set(earlier))
        if own:
            raise FileExistsError(
                f"folder {self.given} contains {', '.join(own)}, which a result would replace and "
                "no earlier run has written; move it elsewhere or choose another folder"
            )
        for name in earlier:
            self._check_movable(name)
            if source is not None and _resolved(source).is_relative_to(self.path / name):
                raise FileExistsError(
                    f"{source} belongs to the earlier run that overwriting {self.given} would "
                    "delete; choose another folder"
                )

    def _check_movable(self, name: str) -> None:
        path = self.path / name
        if path.is_symlink() or not path.is_dir():
            return
        # To move a folder, and to delete its files, it must be writable itself.
        if path.is_mount() or not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(
                f"{self.given / name}, which belongs to the earlier run, cannot be replaced: it is "
                "read-only, or another disk is mounted there"
            )

    def _check_other_runs(self) -> None:
        for run in Unfinished.all_in(self.path):
            if run.path == self._killed:
                continue
            if run.may_be_live():
                raise FileExistsError(
                    f"another run (process {run.pid} on {run.host}) is writing into folder "
                    f"{self.given}; wait for it, or choose another folder. If that run no longer "
                    f"exists, delete {self.given / run.path.name}"
                )
            if not self.overwrite:
                raise FileExistsError(
                    f"folder {self.given} contains {run.path.name}, left behind by a run that was "
                    "killed; delete it, or allow overwriting (--overwrite), which deletes it"
                )

    def _open(self) -> None:
        if self.path.parent.is_dir():
            tidy(self.path)
        try:
            if self._killed is not None:
                os.rename(self._killed, self.staging)
                for name in ("new", "old"):
                    shutil.rmtree(self.staging / name, ignore_errors=True)
            self.new.mkdir(parents=True)
        except OSError as error:
            self.close()
            msg = f"folder {self.given} is not writable: {error.strerror or error}"
            raise type(error)(msg) from error


@contextmanager
def reserve_folder(
    out: str | Path,
    name: str,
    *,
    overwrite: bool,
    source: Path | None = None,
    killed: Path | None = None,
) -> Iterator[ResultsFolder]:
    """Reserve a folder for one run, see :class:`ResultsFolder`; unpublished files are deleted."""
    folder = ResultsFolder(out, name, overwrite=overwrite, source=source, killed=killed)
    try:
        yield folder
    finally:
        folder.close()


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Delay Ctrl-C until a short operation is complete."""
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(before):  # signals reach the main thread only, or are ignored
        yield
        return
    noted: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: noted.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if noted:
        before(*noted[0])


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # links that form a loop
        raise NotADirectoryError(f"{path} cannot be reached: {error}") from error
