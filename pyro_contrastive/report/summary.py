"""What the shell prints when the work is done."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["print_summary"]

_COLORS = {"background": "blue", "salient": "dark_orange"}


def print_summary(
    scores: pd.DataFrame, folder: Path, seconds: float, *, console: Console | None = None
) -> None:
    """Print the scores and where the results are.

    Parameters
    ----------
    scores
        Table of :func:`pyro_contrastive.analysis.separation.score_latents`.
    folder
        Folder of the results.
    seconds
        Wall time of the training.
    console
        Where to print. Default: standard output.
    """
    console = console or Console()
    table = Table(
        "latent", "of", "measure", "value", "better", "in words", box=None, pad_edge=False
    )
    for row in scores.to_dict("records"):
        color = _COLORS[row["latent"]]
        table.add_row(
            f"[{color}]{row['latent']}[/]",
            row["of"],
            row["measure"],
            f"{row['value']:.3f}",
            row["best"],
            row["reading"],
        )
    console.print(table)
    console.print(f"\nTrained in {seconds:.0f} s. Open this page in a browser:")
    # One unbroken line: a path that is wrapped cannot be copied.
    console.print(f"[bold]{escape(str((folder / 'index.html').resolve()))}[/]", soft_wrap=True)
