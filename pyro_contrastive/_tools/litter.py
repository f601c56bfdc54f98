"""Files that systems and programs leave in folders without being asked."""

from __future__ import annotations

from fnmatch import fnmatchcase

# Left by file systems, file browsers and Jupyter.
_LITTER = (
    ".ds_store",
    "._*",
    ".localized",
    ".apdisk",
    ".fseventsd",
    ".spotlight-v100",
    ".trash*",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    ".directory",
    "@eadir",
    ".nfs*",
    ".fuse_hidden*",
    ".snapshot",
    "lost+found",
    ".ipynb_checkpoints",
)


def is_litter(name: str) -> bool:
    """Tell whether a file or folder of this name was left by the system rather than by a person."""
    return any(fnmatchcase(name.lower(), pattern) for pattern in _LITTER)
