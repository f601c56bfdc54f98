"""Checksums that tie the files of a saved model together.

The configuration holds a SHA-256 of each other file, and one of itself. A file that was damaged,
edited or exchanged for that of another model is thus found before anything is made from it. This
protects from accidents: whoever changes a file on purpose can write a new checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_contrastive._tools.invalid_file import InvalidFileError

CHECKSUMS = "checksums"
"""The entry of the configuration: checksums by name of file."""
_ON_PURPOSE = (
    "If it was changed on purpose, delete the entry 'checksums' of config.json and set 'format' to "
    "1: the model is then loaded without this check."
)


def sealed(config: Mapping[str, Any], name: str, others: Mapping[str, Path]) -> dict[str, Any]:
    """Return a configuration with checksums.

    Parameters
    ----------
    config
        The configuration, without checksums.
    name
        Name of the file it will be written to.
    others
        The other files by name, already written.
    """
    sums = {other: file_checksum(path) for other, path in others.items()}
    config = {**config, CHECKSUMS: sums}
    return {**config, CHECKSUMS: {name: _config_checksum(config, name), **sums}}


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a configuration that is not the one that was written.

    Raises
    ------
    InvalidFileError
        If its checksum differs.
    """
    found = config[CHECKSUMS]
    if not isinstance(found, dict) or found.get(path.name) != _config_checksum(config, path.name):
        msg = f"{path} was changed after it was saved, or is damaged: its checksum differs."
        raise InvalidFileError(f"{msg} {_ON_PURPOSE}")


def check_file(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a file that is not the one that was saved with this configuration.

    Raises
    ------
    InvalidFileError
        If its checksum differs, or there is none of it.
    """
    expected = config[CHECKSUMS].get(path.name)
    if expected is None:
        msg = f"{path} was not saved with this model, whose configuration does not mention it."
        raise InvalidFileError(f"{msg} {_ON_PURPOSE}")
    if file_checksum(path) != expected:
        msg = (
            f"{path} is damaged, was changed after it was saved, or belongs to another model: its "
            "checksum differs from the one in the configuration."
        )
        raise InvalidFileError(f"{msg} {_ON_PURPOSE}")


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config_checksum(config: Mapping[str, Any], name: str) -> str:
    """Return the SHA-256 of a configuration, however its JSON is laid out, but for itself."""
    others = {k: v for k, v in config[CHECKSUMS].items() if k != name}
    text = json.dumps({**config, CHECKSUMS: others}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
