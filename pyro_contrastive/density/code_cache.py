"""numba's cache of compiled code, made safe: if it fails, the code is compiled again.

numba keeps machine code in files and assumes that they can be read and written. A file that a
killed job or a full disk left incomplete would stop every later run. Here such a failure only
switches the cache off; the code compiled without it is the same.

For developers: numba compiles a function again when its own file changes, but not when a function
that it calls changes in another file. After editing one of the `kernel` files, delete the folder
``__pycache__`` next to them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)
_logged_folders: set[str] = set()


class ForgivingCache:
    """A cache of one function's machine code that its first failure switches off.

    Errors of the cache are caught; those of the compiler and of the function itself are not.

    Parameters
    ----------
    cache
        numba's cache of the function, which does the work.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._works = True

    def __getattr__(self, name: str) -> Any:
        """Behave like numba's cache in everything else."""
        return getattr(self._cache, name)

    def load_overload(self, *arguments: Any) -> Any:
        """Return the code for these types of arguments, ``None`` if it has to be compiled."""
        return self._try(self._cache.load_overload, arguments)

    def save_overload(self, *arguments: Any) -> None:
        """Save the code for these types of arguments."""
        self._try(self._cache.save_overload, arguments)

    def _try(self, act: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if not self._works:
            return None
        try:
            return act(*arguments)
        except Exception as error:  # a damaged pickle may raise anything, and so may a file system
            self._works = False
            _log_once(str(self._cache.cache_path), error)
            return None


def forgiving(function: Any) -> Any:
    """Let a function compiled by numba with ``cache=True`` work without its cache if that fails.

    numba has no public name for the cache of a function. If a version keeps it elsewhere than
    versions 0.59 to 0.68 do, the function is returned unchanged.
    """
    if hasattr(function, "_cache"):
        function._cache = ForgivingCache(function._cache)
    return function


def _log_once(folder: str, error: Exception) -> None:
    """Log a failure, once for each folder."""
    if folder in _logged_folders:
        return
    _logged_folders.add(folder)
    logger.warning(
        "The compiled code in %s cannot be used or kept (%s: %s). It is compiled again, which "
        "takes some seconds in every session. To keep it between sessions, delete that folder or "
        "free space on its disk.",
        folder,
        type(error).__name__,
        error,
    )
