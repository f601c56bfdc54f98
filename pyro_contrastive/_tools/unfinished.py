"""Names of folders that a process is still writing, from which others see whether it lives."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

_in_use: set[str] = set()  # tokens of this process that are in use


def new_token() -> str:
    """Return an ending of a folder's name that says which process writes the folder."""
    token = f"unfinished-{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
    _in_use.add(token)
    return token


def give_up_token(token: str) -> None:
    """Say that this process no longer writes the folder."""
    _in_use.discard(token)


@dataclass(frozen=True)
class Unfinished:
    """A folder that some process is writing, or was writing when it died.

    Parameters
    ----------
    path
        The folder, whose name ends with a token.
    host, pid
        The process that made it.
    token
        The ending of its name.
    """

    path: Path
    host: str
    pid: int
    token: str

    @classmethod
    def all_in(cls, folder: Path, prefix: str = ".") -> Iterator[Unfinished]:
        """Find all in `folder` whose names are `prefix` and a token."""
        name = re.compile(
            re.escape(prefix) + r"(?P<token>unfinished-(?:(?P<host>.+)-)?(?P<pid>\d+)-\w+)"
        )
        for path in folder.iterdir():
            found = name.fullmatch(path.name)
            if found is not None:
                host = found["host"] or socket.gethostname()
                yield cls(path, host, int(found["pid"]), found["token"])

    def may_be_live(self) -> bool:
        """Tell whether the process may still be writing."""
        if self.host != socket.gethostname() or os.name == "nt":
            return True  # cannot be known from here; on Windows os.kill(pid, 0) is Ctrl-C
        if self.pid == os.getpid():
            return self.token in _in_use
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError:
            return True
        return True
