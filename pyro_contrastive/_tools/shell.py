"""Errors and warnings as a shell shows them: on one line each, on standard error."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer

__all__ = ["errors_on_one_line", "plain_warnings", "print_error", "refuse_torchrun"]


@contextmanager
def errors_on_one_line(*mistakes: type[Exception]) -> Iterator[None]:
    """Turn exceptions that report a user's mistake into one line each and exit code 2."""
    try:
        with plain_warnings():
            yield
    except mistakes as error:
        print_error(str(error))
        raise typer.Exit(2) from error


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings meant for the user on one line, without the line of code that raised them."""
    show = warnings.showwarning

    def show_plainly(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning:
            typer.echo("Warning: " + " ".join(str(message).split()), err=True)
        else:
            show(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.showwarning = show_plainly
        yield


def refuse_torchrun() -> None:
    """Refuse to run in several processes, each of which would write the same folder.

    Raises
    ------
    ValueError
        If ``torchrun`` has started several.
    """
    n_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in os.environ and n_processes > 1:
        msg = (
            f"torchrun has started {n_processes} processes, and this command fits and writes in "
            "one: run it without torchrun. To train on several devices, write a script that calls "
            "ContrastiveVI.train()."
        )
        raise ValueError(msg)


def print_error(text: str) -> None:
    """Write an error on one line of standard error."""
    typer.echo("Error: " + " ".join(text.split()), err=True)
