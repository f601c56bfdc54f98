"""Put the results of a run in the place of an earlier run's: the whole folder in one step.

Where the folder itself cannot be exchanged (it is a mounted disk, the current folder, or holds
folders of the user's own), its entries are moved one by one. Meanwhile a note and the manifest say
that the folder is unfinished; after a kill they stay, so that a mixture is never taken for results.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from pyro_contrastive._tools.atomic import exchange, flush
from pyro_contrastive.report.earlier_run import MANIFEST, NOTE, files_below, manifest_of

__all__ = ["put_in_place"]

_TEXT = """\
A run is moving its results into this folder, or was killed while it did.
If no run is active, the files here belong to two runs: run the command again with --overwrite.
"""


def put_in_place(new: Path, folder: Path, earlier: Collection[str], aside: Path) -> None:
    """Replace an earlier run's entries of a folder by those of a new one.

    Parameters
    ----------
    new
        The folder of the new run's files, with its manifest, on the same disk.
    folder
        The folder for them.
    earlier
        Names of the entries to be deleted, those of the earlier run.
    aside
        A folder below `folder`, to be deleted, for the earlier run's entries.

    Raises
    ------
    OSError
        If that fails; every file of the earlier run is then where it was, and those of the new run
        are in `new`.
    """
    scratch = aside.relative_to(folder).parts[0]
    own = [path for path in folder.iterdir() if path.name not in {*earlier, scratch}]
    names = {path.name for path in new.iterdir()}
    for path in own:
        if path.name in names:
            raise FileExistsError(f"{path} was created in the meantime")
    if not (_can_be_exchanged(folder, own) and _exchange(new, folder, own)):
        _Moves(new, folder, aside).make(earlier)


def _can_be_exchanged(folder: Path, own: Iterable[Path]) -> bool:
    """Tell whether another folder may take this one's place, with the user's own files."""
    has_folders = any(path.is_dir() and not path.is_symlink() for path in own)
    return not (has_folders or folder.is_mount() or Path.cwd().is_relative_to(folder))


def _exchange(new: Path, folder: Path, own: Collection[Path]) -> bool:
    """Exchange the folders; return ``False``, with nothing changed, if that is not possible."""
    beside = folder.parent / f".{folder.name}{new.parent.name}"
    known = set(os.listdir(folder))
    try:
        os.rename(new, beside)
    except OSError:
        return False
    try:
        flush(beside)
        for path in own:  # they are in both folders until the old one is deleted
            os.link(path, beside / path.name, follow_symlinks=False)
        shutil.copymode(folder, beside)
        exchange(beside, folder)
    except BaseException as error:
        for path in own:
            (beside / path.name).unlink(missing_ok=True)
        os.rename(beside, new)
        if isinstance(error, OSError):
            return False
        raise
    with suppress(OSError):
        flush(folder.parent, only_names=True)
        for name in set(os.listdir(beside)) - known:  # the user has made it in the meantime
            os.rename(beside / name, folder / name)
    shutil.rmtree(beside, ignore_errors=True)
    return True


class _Moves:
    """The entries of two runs moved one by one, which can be undone."""

    def __init__(self, new: Path, folder: Path, aside: Path) -> None:
        self.new, self.folder, self.aside = new, folder, aside
        self._moved: list[tuple[Path, Path]] = []

    def make(self, earlier: Collection[str]) -> None:
        """Move all entries, or none; the folder is marked as unfinished until that is done."""
        self.aside.mkdir(exist_ok=True)
        flush(self.new)
        try:
            self._mark(earlier)
            for name in earlier:
                if name not in {MANIFEST, NOTE}:
                    self._move(self.folder / name, self.aside / name)
            for name in sorted(path.name for path in self.new.iterdir()):
                if name != MANIFEST:
                    self._move(self.new / name, self.folder / name)
        except BaseException:
            self._undo()
            raise
        (self.folder / NOTE).unlink()
        if (self.new / MANIFEST).exists():
            os.replace(self.new / MANIFEST, self.folder / MANIFEST)
        else:  # the disk was too full for it
            (self.folder / MANIFEST).unlink()

    def _mark(self, earlier: Iterable[str]) -> None:
        """Write a manifest of the files of both runs, and then the note."""
        files = [NOTE, *files_below(self.new)]
        for name in earlier:
            path = self.folder / name
            inside = files_below(path) if path.is_dir() and not path.is_symlink() else []
            files += [f"{name}/{file}" for file in inside] or [name]
        if (self.folder / MANIFEST).exists():
            shutil.copy2(self.folder / MANIFEST, self.aside / MANIFEST)
        both = self.aside / "both"
        both.write_text(manifest_of(files), encoding="utf-8")
        os.replace(both, self.folder / MANIFEST)
        (self.folder / NOTE).write_text(_TEXT, encoding="utf-8")

    def _move(self, origin: Path, place: Path) -> None:
        if place.exists() or place.is_symlink():  # os.rename would replace a file
            raise FileExistsError(f"{place} was created in the meantime")
        os.rename(origin, place)
        self._moved.append((origin, place))

    def _undo(self) -> None:
        for origin, place in reversed(self._moved):
            with suppress(OSError):
                os.rename(place, origin)
        with suppress(OSError):
            (self.folder / NOTE).unlink(missing_ok=True)
            if (self.aside / MANIFEST).exists():
                os.replace(self.aside / MANIFEST, self.folder / MANIFEST)
            else:
                (self.folder / MANIFEST).unlink(missing_ok=True)
