"""The summary that the shell prints at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pyro_contrastive.training.history import FitResult

__all__ = ["describe_training", "print_summary", "print_training", "training_facts"]

_COLORS = {"background": "blue", "salient": "dark_orange"}


def print_training(result: FitResult, history: Mapping[str, pd.DataFrame]) -> None:
    """Print on one line of standard output how the training ended."""
    Console().print(escape(describe_training(result, history)), soft_wrap=True, highlight=False)


def describe_training(result: FitResult, history: Mapping[str, pd.DataFrame]) -> str:
    """Describe how many epochs ran, why training stopped, and which epoch's weights were kept.

    Parameters
    ----------
    result
        The result of ``train``.
    history
        Training history; ``"elbo_validation"`` is used if present.
    """
    most = "" if result.max_epochs is None else f" of {result.max_epochs}"
    run = f"Trained {result.n_epochs}{most} epochs"
    if result.stopped_early or result.interrupted:
        run += f": stopped early ({result.reason})"
    if "elbo_validation" not in history:
        return f"{run}; no cells were held out."
    held_out = history["elbo_validation"].iloc[:, 0].dropna()
    best = held_out.idxmin()
    words = f"{run}; best held-out -ELBO {held_out[best]:,.1f} per pair, at epoch {best}"
    if result.best_epoch is None:
        kept = "; the weights are those of the last epoch"
    elif result.best_epoch == best:
        kept = ", whose weights are kept"
    else:  # early stopping ignores the epochs of the KL warm-up
        kept = f"; the weights kept are those of epoch {result.best_epoch}, after the KL warm-up"
    return f"{words}{kept} (epochs counted from 0)."


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
    table = Table("latent", "of", "measure", "value", "better", "reading", box=None, pad_edge=False)
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


def training_facts(history: Mapping[str, pd.DataFrame], seconds: float) -> dict[str, str]:
    """Summarise a training for the page.

    Parameters
    ----------
    history
        Training history; ``"elbo_train"`` and ``"elbo_validation"`` are used where present.
    seconds
        Wall time.

    Returns
    -------
    dict of str to str
        Epochs, wall time, and the best held-out and last training negative ELBO.
    """
    minutes, rest = divmod(round(seconds), 60)
    wall_time = f"{minutes} min {rest} s" if minutes else f"{rest} s"
    facts = {"epochs": "not recorded", "wall time": wall_time}
    curves = {name: history[name].iloc[:, 0].dropna() for name in history if len(history[name])}
    if "elbo_validation" in curves:
        held_out = curves["elbo_validation"]
        facts["best held-out negative ELBO"] = f"{held_out.min():,.1f} nats per pair"
        facts["reached at epoch (counted from 0)"] = str(held_out.idxmin())
    if "elbo_train" in curves:
        facts["epochs"] = str(len(curves["elbo_train"]))
        facts["last training negative ELBO"] = f"{curves['elbo_train'].iloc[-1]:,.1f} nats per pair"
    return facts
