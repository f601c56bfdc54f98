"""A file for HDF5, which does not survive that a disk is full."""

from __future__ import annotations

from io import FileIO
from typing import Any

_PAGE = 2**16


class TolerantFile(FileIO):
    """A file that seems to take all data; what the disk does not take stays in memory.

    After a failure to write, HDF5 cannot close its file, and the process crashes, often only when
    it ends. Here HDF5 never sees a failure: everything from the first one on is kept in memory, so
    that what was written can be read, and :meth:`raise_failure` raises the error afterwards.
    """

    def __init__(self, path: Any) -> None:
        super().__init__(path, "w+")
        self._failure: OSError | None = None
        self._pages: dict[int, bytearray] = {}  # by number, from the first failure on

    def write(self, data: Any) -> int:
        """Write all of the data, to the disk or to memory."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while len(left) and self._failure is None:
                left = left[self._to_disk(left) :]
        except OSError as error:
            self._failure = error
        while len(left):
            page, start = self._page()
            n = min(_PAGE - start, len(left))
            page[start : start + n] = left[:n]
            left = left[n:]
            self.seek(self.tell() + n)
        return size

    def _to_disk(self, data: memoryview) -> int:
        """Write some of the data; return how many bytes that were."""
        return super().write(data) or 0

    def readinto(self, target: Any) -> int:
        """Read what was written, wherever it is."""
        if self._failure is None:
            return super().readinto(target) or 0
        left = memoryview(target).cast("B")
        size = len(left)
        while len(left):
            page, start = self._page()
            n = min(_PAGE - start, len(left))
            left[:n] = page[start : start + n]
            left = left[n:]
            self.seek(self.tell() + n)
        return size

    def truncate(self, size: int | None = None) -> int:
        """Change the length of the file, unless writing has failed."""
        try:
            if self._failure is None:
                return super().truncate(size)
        except OSError as error:
            self._failure = error
        return self.tell() if size is None else size

    def raise_failure(self) -> None:
        """Raise the error of the first failure, if there was one."""
        if self._failure is not None:
            raise self._failure

    def _page(self) -> tuple[bytearray, int]:
        """Return the page of the present position, and the place in it."""
        at = self.tell()
        number, start = divmod(at, _PAGE)
        if number not in self._pages:
            page = bytearray(_PAGE)
            self.seek(number * _PAGE)
            super().readinto(page)
            self.seek(at)
            self._pages[number] = page
        return self._pages[number], start
