"""Running an iterator in a thread, one item ahead of whoever uses its items."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
_WAIT = 0.05
"""Seconds after which a thread looks whether the other one is still there."""


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None = None


def in_background(items: Iterable[T], n_ahead: int = 1) -> Generator[T, None, None]:
    """Yield the items, made in a thread while those before them are used.

    An error that is raised there is raised here, when its item would come; the thread ends with the
    last item, or when this iterator is closed.

    Parameters
    ----------
    items
        What is to be made; only the thread touches it.
    n_ahead
        Number of items that may wait.
    """
    ready: queue.Queue[_Item[T] | _End] = queue.Queue(maxsize=n_ahead)
    stop = threading.Event()
    thread = threading.Thread(target=_make, args=(items, ready, stop), daemon=True)
    thread.start()
    try:
        while True:
            found = _next(ready, thread)
            if isinstance(found, _End):
                if found.error is not None:
                    raise found.error
                return
            yield found.value
            del found  # or its memory would be kept while the next one is waited for
    finally:
        stop.set()
        thread.join()


def _make(items: Iterable[T], ready: queue.Queue[_Item[T] | _End], stop: threading.Event) -> None:
    """Make the items, until there are no more or nobody wants them."""
    try:
        for value in items:
            if not _put(ready, _Item(value), stop):
                return
            del value
    except BaseException as error:  # handed on to whoever uses the items
        _put(ready, _End(error), stop)
    else:
        _put(ready, _End(), stop)


def _put(ready: queue.Queue[_Item[T] | _End], item: _Item[T] | _End, stop: threading.Event) -> bool:
    """Hand on an item as soon as there is room; return whether it is still wanted."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_WAIT)
        except queue.Full:
            continue
        return True
    return False


def _next(ready: queue.Queue[_Item[T] | _End], thread: threading.Thread) -> _Item[T] | _End:
    """Wait for an item, but not for a thread that is gone, as after a fork."""
    while True:
        try:
            return ready.get(timeout=_WAIT)
        except queue.Empty:
            if not thread.is_alive() and ready.empty():
                msg = "The thread that reads ahead has ended without a result."
                raise RuntimeError(msg) from None
