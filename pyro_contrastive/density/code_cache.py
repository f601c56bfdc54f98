"""numba's cache of compiled code, whose failures cost time and nothing else.

numba keeps machine code in files, and takes it for granted that they can be read and written. A
file that a killed job or a full disk left incomplete then stops every later run. Here the code is
compiled again, without the cache, as if there were none; it is the same code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)
_told: set[str] = set()


class ForgivingCache:
    """A cache of one function's machine code, switched off by its first failure.

    Only what numba's cache does is guarded: errors of the compiler, and of the function, are not.

    Parameters
    ----------
    cache
        That of numba, which does the work.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._works = True

    def __getattr__(self, name: str) -> Any:
        """Be numba's cache in all else."""
        return getattr(self._cache, name)

    def load_overload(self, *arguments: Any) -> Any:
        """Return the code for these types of arguments; ``None``: it has to be compiled."""
        return self._try(self._cache.load_overload, arguments)

    def save_overload(self, *arguments: Any) -> None:
        """Write down the code for these types of arguments."""
        self._try(self._cache.save_overload, arguments)

    def _try(self, act: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if not self._works:
            return None
        try:
            return act(*arguments)
        except Exception as error:  # of a damaged pickle, or of the file system: any
            self._works = False
            _tell(str(self._cache.cache_path), error)
            return None


def forgiving(function: Any) -> Any:
    """Let a function compiled by numba with ``cache=True`` do without its cache if that fails.

    numba has no public name for the cache of a function. In a version that keeps it elsewhere than
    versions 0.59 to 0.68 do, the function stays as it is.
    """
    if hasattr(function, "_cache"):
        function._cache = ForgivingCache(function._cache)
    return function


def _tell(folder: str, error: Exception) -> None:
    """Log a failure, once for each folder."""
    if folder in _told:
        return
    _told.add(folder)
    logger.warning(
        "The compiled code in %s cannot be used or kept (%s: %s). It is compiled again, which "
        "takes some seconds in every session. To have it kept, delete that folder, or make room on "
        "its disk.",
        folder,
        type(error).__name__,
        error,
    )
