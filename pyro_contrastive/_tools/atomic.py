"""Folders that are replaced as a whole: at every moment a reader finds the old one or the new one.

A folder is written beside its place and put there in one step, by an exchange of two names, once
all of it is on the disk. Whenever the process is killed, or the power fails, the old folder is
intact or the new one is complete. What a killed process leaves beside the folder is removed by the
next one that writes there.

Some file systems (NFS, Lustre) cannot exchange two names. There the old folder is moved aside
before the new one takes its place; if the process is killed in between, :func:`current` finds the
old one, and the next writer puts it back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyro_contrastive._tools.unfinished import Unfinished, give_up_token, new_token

_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a system or a file system answers that cannot exchange two names."""
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2
_NEW, _OLD = "new", "old"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into, and put it in the place of `folder` at the end.

    If anything fails, `folder` is as it was. If it is a symbolic link, the folder that it leads to
    is replaced.

    Parameters
    ----------
    folder
        The place; it may hold a folder, which is deleted, or nothing.

    Yields
    ------
    The folder to write into, on the same disk.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    tidy(folder)
    token = new_token()
    scratch = folder.parent / f".{folder.name}.{token}"
    new = scratch / _NEW
    try:
        new.mkdir(parents=True)
        yield new
        flush(new)
        if not folder.exists():
            os.rename(new, folder)
        else:
            shutil.copymode(folder, new)
            _replace(new, folder, scratch / _OLD)
        flush(folder.parent, only_names=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        give_up_token(token)


def current(folder: Path) -> Path:
    """Return where the content of a folder is: there, unless its writer was killed in between."""
    folder = folder.resolve()
    if not folder.exists() and folder.parent.is_dir():
        for each in Unfinished.all_in(folder.parent, f".{folder.name}."):
            if (each.path / _OLD).is_dir():
                return each.path / _OLD
    return folder


def is_being_written(folder: Path) -> bool:
    """Tell whether some process may be replacing a folder now."""
    folder = folder.resolve()
    if not folder.parent.is_dir():
        return False
    found = Unfinished.all_in(folder.parent, f".{folder.name}.")
    return any(each.may_be_live() for each in found)


def tidy(folder: Path) -> None:
    """Remove what killed writers left beside a folder; put back what they had moved aside."""
    for each in list(Unfinished.all_in(folder.parent, f".{folder.name}.")):
        if each.may_be_live():
            continue
        if not folder.exists() and (each.path / _OLD).is_dir():
            os.rename(each.path / _OLD, folder)
        shutil.rmtree(each.path, ignore_errors=True)


def exchange(one: Path, other: Path) -> None:
    """Exchange two files or folders in one step.

    Raises
    ------
    OSError
        If that fails; its ``errno`` is one of ``ENOSYS``, ``EINVAL`` and ``ENOTSUP`` where system
        or file system cannot do it. Nothing has changed then.
    """
    names = os.fsencode(one), os.fsencode(other)
    library: Any = None if os.name == "nt" else ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, _RENAME_SWAP)
    elif hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(one), None, os.fspath(other))


def cannot_exchange(error: OSError) -> bool:
    """Tell whether an error of :func:`exchange` means that it is not possible here at all."""
    return error.errno in _NO_EXCHANGE


def _replace(new: Path, folder: Path, old: Path) -> None:
    """Put `new` in the place of `folder`, which stays as it was if that fails."""
    try:
        exchange(new, folder)
    except OSError as error:
        if not cannot_exchange(error):
            raise
    else:
        return
    os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        os.rename(old, folder)
        raise


def flush(folder: Path, *, only_names: bool = False) -> None:
    """Wait until a folder is on the disk: all files below, or only the names in it.

    Raises
    ------
    OSError
        If a file cannot be written to the disk.
    """
    if not only_names:
        for where, folders, files in os.walk(folder):
            for name in files:
                _sync(Path(where, name))
            for name in folders:
                flush(Path(where, name), only_names=True)
    with suppress(OSError):  # Windows and some network file systems cannot
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
