"""The options of the commands: their types, names and help texts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pyro_contrastive._tools.shell import errors_on_one_line
from pyro_contrastive.guides import SHORT_NAMES as GUIDES
from pyro_contrastive.likelihoods import SHORT_NAMES as LIKELIHOODS

__all__ = [
    "CategoricalOption",
    "ContinuousOption",
    "Embedding",
    "EmbeddingOption",
    "EpochsOption",
    "GuideOption",
    "LikelihoodOption",
    "NullOption",
    "OnDiskOption",
    "OutOption",
    "OverwriteOption",
    "PresetOption",
    "RefineOption",
    "ResumeOption",
    "SampleOption",
    "Schedule",
    "ScheduleOption",
    "SeedOption",
]


class Embedding(StrEnum):
    """How to map a latent to two dimensions."""

    tsne = "tsne"
    umap = "umap"
    pca = "pca"


class Schedule(StrEnum):
    """Named training schedules."""

    default = "default"
    fast = "fast"
    reference = "reference"


def _one_of(names: Collection[str]) -> Callable[[str], str]:
    """Return a parser that accepts one of these short names."""

    def parse(name: str) -> str:
        if name not in names:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(names)}.")
        return name

    return parse


OutOption = Annotated[Path, typer.Option(help="Folder for the results.")]
EpochsOption = Annotated[int | None, typer.Option(min=1, help="Epochs at most.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Write into a folder that is not empty, and replace the files of an earlier run.",
    ),
]
PresetOption = Annotated[
    str,
    typer.Option(
        help="Member of the family of models: a row of pyro_contrastive.presets(), or none for "
        "the defaults of the Python constructor ContrastiveVI, which has no penalty. The "
        "default is what the README recommends."
    ),
]
ScheduleOption = Annotated[
    Schedule,
    typer.Option(
        help="fast: about 500 steps; reference: 400 epochs, as in scvi-tools. Default: fast for "
        "the preset separated, which was designed for it, and reference otherwise."
    ),
]
LikelihoodOption = Annotated[
    str | None,
    typer.Option(
        parser=_one_of(LIKELIHOODS),
        metavar=f"[{'|'.join(LIKELIHOODS)}]",
        help="Distribution of the data: of counts, of zeros and ones (bernoulli), or of "
        "log-normalised values (gaussian). Default: the preset's, mostly zinb.",
        show_default=False,
    ),
]
GuideOption = Annotated[
    str | None,
    typer.Option(
        parser=_one_of(GUIDES),
        metavar=f"[{'|'.join(GUIDES)}]",
        help="Family of the posterior of a cell. Default: mean-field.",
        show_default=False,
    ),
]
SampleOption = Annotated[
    str | None,
    typer.Option(
        help="Column of donors (patients, animals), which are then the replicates, not their cells."
    ),
]
CategoricalOption = Annotated[
    list[str] | None,
    typer.Option(
        "--categorical-covariate", help="Column of categories to correct for; may be repeated."
    ),
]
ContinuousOption = Annotated[
    list[str] | None,
    typer.Option(
        "--continuous-covariate", help="Column of numbers to correct for; may be repeated."
    ),
]
RefineOption = Annotated[
    bool,
    typer.Option(
        help="Refine the posterior of every cell after training (5 to 10 ms per cell and 2,000 "
        "genes): the latents and the saved model then have it. It matters for intervals and weak "
        "responses, not for a map.",
    ),
]
NullOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Fits to shuffled conditions that the results are held against; each takes as long as "
        "the fit. Default: 3 with the fast schedule, otherwise 0.",
        show_default=False,
    ),
]
OnDiskOption = Annotated[
    bool | None,
    typer.Option(
        "--on-disk/--in-memory",
        help="Leave the counts in the file and read some cells at a time. Default: if the file is "
        "larger than a third of the memory.",
        show_default=False,
    ),
]


def _take_noted(context: typer.Context, results: Path | None) -> Path | None:
    """Take the other options from the run that is continued, unless they are given again."""
    if results is not None:
        with errors_on_one_line(OSError, ValueError):
            from pyro_contrastive.report.resume import killed_run, noted_command  # noqa: PLC0415

            noted = noted_command(killed_run(results))
        context.default_map = {**noted, "out": str(results)}
    return results


ResumeOption = Annotated[
    Path | None,
    typer.Option(
        callback=_take_noted,
        is_eager=True,
        help="Folder of a fit that was killed, to be continued: no other option is needed. The "
        "result is that of a fit that was not interrupted.",
        show_default=False,
    ),
]
EmbeddingOption = Annotated[Embedding, typer.Option(help="How to draw the latents in 2-D.")]
