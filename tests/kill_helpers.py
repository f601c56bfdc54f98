"""Kill a process at any of its file events, and see what it leaves."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

EVENTS = {
    *("open", "ctypes.dlopen", "shutil.rmtree"),
    *("os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"),
}
"""Audit events of Python at which files change, or that come just before they do."""


def killed_at(number: int, act: Callable[[], Any]) -> bool:
    """Let a child process act, and kill it before its file event of this number.

    Returns whether there were so many events. The child is a copy of this process, so that
    nothing needs to be imported again.
    """
    with warnings.catch_warnings():
        # torch has threads of its own, which are idle here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _act_until(number, act)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "what was tried failed without being killed"
    return False


def _act_until(number: int, act: Callable[[], Any]) -> None:
    left = [number]

    def hook(event: str, _: Any) -> None:
        if event in EVENTS:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.addaudithook(hook)
        act()
        code = 0
    finally:
        os._exit(code)


def every_kill(act: Callable[[], Any], reset: Callable[[], Any]) -> Iterator[int]:
    """Kill a child at its first file event, its second and so on; yield after each kill."""
    number = 0
    while True:
        reset()
        if not killed_at(number, act):
            return
        yield number
        number += 1
