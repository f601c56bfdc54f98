"""Continue a fit of the shell that was killed, from what it left in the folder for its results."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_contrastive import __version__
from pyro_contrastive._tools.unfinished import Unfinished
from pyro_contrastive.report.folder import ResultsFolder

__all__ = ["killed_run", "note_command", "noted_command"]

_COMMAND = "command.json"
_NOT_NOTED = {"out", "resume"}


def note_command(folder: ResultsFolder, arguments: Mapping[str, Any]) -> None:
    """Write into the folder what its run was asked to do, so that it can be continued.

    Parameters
    ----------
    folder
        The folder, reserved.
    arguments
        The options of the shell by name; paths become absolute.
    """
    noted = {
        name: str(value.resolve()) if isinstance(value, Path) else value
        for name, value in arguments.items()
        if name not in _NOT_NOTED and value is not None
    }
    text = json.dumps({"version": __version__, "arguments": noted}, indent=1)
    (folder.staging / _COMMAND).write_text(text, encoding="utf-8")


def killed_run(results: Path) -> Path:
    """Find what a killed run left in the folder for its results.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no run was killed that had begun to fit.
    ValueError
        If the run is still active.
    """
    found = list(Unfinished.all_in(results)) if results.is_dir() else []
    runs = [run for run in found if (run.path / _COMMAND).is_file()]
    if not runs:
        raise FileNotFoundError(
            f"{results} has nothing of a fit that was killed: without --resume, a new one begins"
        )
    last = max(runs, key=lambda run: run.path.stat().st_mtime)
    # Whether a process of another host lives is not known here: the user says that it does not.
    if last.host == socket.gethostname() and os.name != "nt" and last.may_be_live():
        raise ValueError(
            f"the fit that writes into {results} is still active (process {last.pid}); it can be "
            "continued only after that has ended"
        )
    return last.path


def noted_command(killed: Path) -> dict[str, Any]:
    """Return the options of a killed run by name.

    Raises
    ------
    ValueError
        If the file with them is damaged, or another version of the library wrote it.
    """
    file = killed / _COMMAND
    try:
        noted = json.loads(file.read_text(encoding="utf-8"))
        version, arguments = noted["version"], noted["arguments"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if version != __version__:
        raise ValueError(
            f"{killed.parent} holds a fit that version {version!a} of pyro-contrastive began; this "
            f"is {__version__}: continue it with that version, or begin anew with --overwrite"
        )
    if not isinstance(arguments, dict):
        raise ValueError(f"{file} is damaged: its arguments are not a table")
    return arguments
