"""One thread at a time: what Pyro and torch share between all threads of a process.

Pyro keeps the effect handlers that are in force in one list, parameters in one store, and whether
it checks distributions in one variable; torch has one random state for each device. A program
that runs in one thread would therefore meet the handlers of another and draw its random numbers. A
model in evaluation mode is in this mode for all threads, too. So whatever runs a program, or sets
or draws from the random state, holds the one lock in this module.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)
# It outlives a reload of this module in a notebook, during which a thread may hold it.
_lock: threading.RLock = globals().get("_lock") or threading.RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let no other thread run a model, train one or draw from its random state inside.

    Training and all methods of a model do this by themselves, for as long as they need the random
    state: a second thread waits, and results are those of the seed. A training is one piece, so
    that another thread waits until it has ended. Within one thread these contexts can be nested,
    as when a penalty of your own asks the model something during training.

    You need it where two calls belong together, such as seeding and making a model, whose initial
    weights are drawn from the global random state.

    It can also be used as a decorator.

    Examples
    --------
    >>> from pyro_contrastive import ContrastiveVI, one_thread, settings
    >>> from pyro_contrastive.data import load_kang
    >>> adata = load_kang()[::50].copy()
    >>> ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    >>> with one_thread():
    ...     settings.seed = 0
    ...     model = ContrastiveVI(adata, n_hidden=8)
    """
    lock = _lock  # a forked process replaces the variable
    if not lock.acquire(blocking=False):
        logger.info("Waiting for another thread that runs or trains a model.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _unlock() -> None:
    """Start a forked process unlocked: the thread that held the lock is not in it."""
    global _lock  # noqa: PLW0603  # the lock of the process
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_unlock)
