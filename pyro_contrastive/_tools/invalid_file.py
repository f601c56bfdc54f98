"""The error about files that are not what they should be."""

from __future__ import annotations


class InvalidFileError(ValueError):
    """A file or folder is damaged, was changed, or asks for what the library does not do.

    Raised before anything is made of its content. That a file is missing, or cannot be opened, is
    an :class:`OSError` as usual.
    """
