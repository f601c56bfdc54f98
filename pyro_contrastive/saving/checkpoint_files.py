"""A checkpoint as a folder: JSON and safetensors, replaced as a whole. Never pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from pyro_contrastive._tools.atomic import tidy, whole_folder
from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive._tools.litter import is_litter
from pyro_contrastive.data.file_checks import refuse_link_outside
from pyro_contrastive.saving.checksums import CHECKSUMS, sealed
from pyro_contrastive.saving.folder import versions
from pyro_contrastive.saving.packed import pack, unpack

STATE, TENSORS = "checkpoint.json", "checkpoint.safetensors"
FORMAT = 2
_NAME = re.compile(r"epoch_(\d+)")
_LEFT = re.compile(r"\.(epoch_\d+)\.unfinished-.*")
_OWN = "pyro-contrastive"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Parameters
    ----------
    identity
        What identifies model, data and training: tables of JSON by group.
    content
        Numbers, text, tensors and arrays, in dictionaries and lists.
    is_last
        Whether the run had ended.
    versions
        Versions of the packages that wrote it.
    """

    identity: dict[str, dict[str, Any]]
    content: dict[str, Any]
    is_last: bool
    versions: dict[str, str]


def all_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, by the number of epochs, the last one first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found, reverse=True) if is_checkpoint(path)]


def n_epochs_of(path: Path) -> int:
    """Return after how many epochs of the run a checkpoint was written, by its name."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else 0


def is_checkpoint(path: Path) -> bool:
    """Tell whether a folder, perhaps damaged, holds nothing but a checkpoint."""
    if path.is_symlink() or not path.is_dir():
        return False
    return all(each.name in {STATE, TENSORS} or is_litter(each.name) for each in path.iterdir())


def write_checkpoint(
    folder: Path,
    n_epochs: int,
    identity: Mapping[str, Mapping[str, Any]],
    content: Mapping[str, Any],
    *,
    is_last: bool,
) -> Path:
    """Write a checkpoint beside its place, and put it there in one step; return the place.

    Raises
    ------
    OSError
        If that is not possible; nothing has changed then.
    TypeError
        If something in it can be written neither as JSON nor as a tensor.
    """
    packed, tensors = pack(content)
    config = {
        "format": FORMAT,
        "versions": dict(versions()),
        "identity": identity,
        "is_last": is_last,
        "content": packed,
    }
    path = folder / f"epoch_{n_epochs}"
    if path.exists() and not is_checkpoint(path):
        raise FileExistsError(f"{path} is in the way, which is not a checkpoint")
    with whole_folder(path) as new:
        (new / TENSORS).write_bytes(save(tensors))
        text = json.dumps(sealed(config, STATE, {TENSORS: new / TENSORS}))
        (new / STATE).write_text(text, encoding="utf-8")
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what :func:`write_checkpoint` wrote.

    Raises
    ------
    InvalidFileError
        If a file is missing, damaged or was changed, or has another format.
    OSError
        If a file cannot be read.
    """
    for name in (STATE, TENSORS):
        refuse_link_outside(path / name, path)
        if not (path / name).is_file():
            raise InvalidFileError(f"{path} is incomplete: it has no {name}.")
    config = _read_config(path)
    others = {TENSORS: path / TENSORS}
    without = {name: value for name, value in config.items() if name != CHECKSUMS}
    if sealed(without, STATE, others)[CHECKSUMS] != config.get(CHECKSUMS):
        msg = f"{path} is damaged or was changed: a checksum differs."
        raise InvalidFileError(msg)
    try:
        content = unpack(config["content"], load_file(path / TENSORS))
        return Checkpoint(config["identity"], content, config["is_last"], config["versions"])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        msg = f"{path} is damaged: {error}."
        raise InvalidFileError(msg) from error


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left while they wrote a checkpoint."""
    for path in list(folder.iterdir()):
        found = _LEFT.fullmatch(path.name)
        if found:
            tidy(folder / found[1])


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / STATE).read_text(encoding="utf-8"))
        found, by = config["format"], config["versions"][_OWN]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"{path / STATE} is damaged: {error}."
        raise InvalidFileError(msg) from error
    own = versions()[_OWN]
    if found != FORMAT or by != own:
        msg = (
            f"{path} was written by version {by!a} of pyro-contrastive (format {found!a}), and "
            f"this is {own}: a run can be continued only by the version that began it. Install "
            f"that version, or begin anew with another folder."
        )
        raise OtherVersionError(msg)
    return dict(config)


class OtherVersionError(ValueError):
    """A checkpoint was written by another version of the library."""
