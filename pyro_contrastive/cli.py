"""The shell: ``pyro-contrastive demo`` and ``pyro-contrastive fit``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, TextIO

import typer

from pyro_contrastive.likelihoods import SHORT_NAMES

# Commands import what they need themselves, so that --help answers at once.

__all__ = ["app"]

TRAIN_SIZE = 0.9

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Embedding(StrEnum):
    """How to map a latent to two dimensions."""

    tsne = "tsne"
    umap = "umap"
    pca = "pca"


class Schedule(StrEnum):
    """What holds where the training is told nothing else."""

    default = "default"
    fast = "fast"
    reference = "reference"


def _short_name(name: str) -> str:
    """Accept the short name of a likelihood."""
    if name not in SHORT_NAMES:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(SHORT_NAMES)}.")
    return name


OutOption = Annotated[Path, typer.Option(help="Folder for the results.")]
EpochsOption = Annotated[int | None, typer.Option(min=1, help="Epochs at most.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Write into a folder that is not empty, and replace what a former run left there.",
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
        help="fast: some 500 steps; reference: as scvi-tools, 400 epochs. Default: fast for the "
        "preset separated, which is meant for it, and reference for all others."
    ),
]
LikelihoodOption = Annotated[
    str | None,
    typer.Option(
        parser=_short_name,
        metavar=f"[{'|'.join(SHORT_NAMES)}]",
        help="Distribution of the data: of counts, of zeros and ones (bernoulli), or of "
        "log-normalised values (gaussian). Default: the preset's, mostly zinb.",
        show_default=False,
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
EmbeddingOption = Annotated[Embedding, typer.Option(help="How to draw the latents in 2-D.")]


@contextmanager
def _one_line(*mistakes: type[Exception]) -> Iterator[None]:
    """Turn the user's mistakes into one line on standard error and exit code 2."""
    try:
        with _plain_warnings():
            yield
    except mistakes as error:
        text = str(error)
        _say_error(text)
        raise typer.Exit(2) from error


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings that are meant for the user on one line, without a place in our code."""
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


@contextmanager
def _what_failed() -> Iterator[None]:
    """Say on one line each which results could not be made, and where the others are."""
    from pyro_contrastive.report.failures import ResultsError  # noqa: PLC0415

    try:
        with _plain_warnings():
            yield
    except ResultsError as error:
        for failure in error.failures:
            _say_error(failure)
        with suppress(OSError, ValueError):  # nobody reads standard output any more
            typer.echo(error.kept)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        _say_error(str(error) or "Interrupted.")
        raise typer.Exit(130) from error  # as shells expect it after Ctrl-C


def _say_error(text: str) -> None:
    typer.echo("Error: " + " ".join(text.split()), err=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        from pyro_contrastive import __version__  # noqa: PLC0415

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Contrastive analysis of single-cell counts: what is shared and what the treatment did."""


@app.command("demo")
def _demo(
    out: OutOption = Path("demo_output"),
    max_epochs: EpochsOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    embedding: EmbeddingOption = Embedding.tsne,
) -> None:
    """Fit the bundled interferon data and explain the result on a web page."""
    with ExitStack() as stack:
        with _one_line(OSError, ValueError):
            _check_embedding(embedding)
            from pyro_contrastive.report.folder import claim_folder  # noqa: PLC0415

            folder = stack.enter_context(claim_folder(out, "kang", overwrite=overwrite))
            from pyro_contrastive.report import demo, pipeline  # noqa: PLC0415

            settings = demo.demo_settings(max_epochs)
            cells, study = demo.demo_cells()
            model = pipeline.prepare_model(cells, folder, study, settings, seed=seed)
        with _what_failed():
            pipeline.run_study(
                model, cells, folder, study, settings, method=embedding.value, seed=seed
            )


@app.command()
def fit(
    counts: Annotated[
        Path,
        typer.Argument(
            help="Raw counts (or what --likelihood takes) as an .h5ad file or a zarr store."
        ),
    ],
    condition_key: Annotated[str, typer.Option(help="Column of obs with the condition.")],
    background: Annotated[str, typer.Option(help="Its value for untreated (background) cells.")],
    out: OutOption,
    label_key: Annotated[
        str | None, typer.Option(help="Column of labels both conditions share, e.g. cell type.")
    ] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of batches to correct for.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the counts; X if not given.")] = None,
    categorical_covariate: CategoricalOption = None,
    continuous_covariate: ContinuousOption = None,
    size_factor: Annotated[
        str | None,
        typer.Option(help="Column of size factors; total counts are used if not given."),
    ] = None,
    preset: PresetOption = "separated",
    likelihood: LikelihoodOption = None,
    n_background_latent: Annotated[int, typer.Option(min=1, help="Background latents.")] = 10,
    n_salient_latent: Annotated[int, typer.Option(min=1, help="Salient latents.")] = 10,
    schedule: ScheduleOption = Schedule.default,
    max_epochs: EpochsOption = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Cells of each population in a step, at most.")
    ] = 128,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    embedding: EmbeddingOption = Embedding.tsne,
) -> None:
    """Fit your own counts and write the same page for them.

    Without further options the model is the one the README recommends:
    the preset "separated" with the fast schedule, as in the demo.
    --preset none is the plain model of the reference, which
    ContrastiveVI(adata) and train() are in Python.
    """
    with ExitStack() as stack:
        with _one_line(OSError, ValueError):  # all that may be refused, before any work is lost
            _check_embedding(embedding)
            from pyro_contrastive.report import file_kinds, inputs  # noqa: PLC0415
            from pyro_contrastive.report import folder as folders  # noqa: PLC0415
            from pyro_contrastive.report import study as studies  # noqa: PLC0415

            member = studies.known_preset(preset)
            study = studies.study_of_file(
                counts,
                condition_key=condition_key,
                background=background,
                label_key=label_key,
                batch_key=batch_key,
                layer=layer,
                categorical_covariates=tuple(categorical_covariate or ()),
                continuous_covariates=tuple(continuous_covariate or ()),
                size_factor_key=size_factor,
            )
            claim = folders.claim_folder(out, study.name, overwrite=overwrite, source=counts)
            folder = stack.enter_context(claim)
            cells = inputs.read_counts(counts)
            inputs.check_columns(cells, study)
            from pyro_contrastive.report import pipeline  # noqa: PLC0415

            distribution = studies.chosen_likelihood(likelihood, member)
            pipeline.register(cells, study, distribution)
            latents = {
                "n_background_latent": n_background_latent,
                "n_salient_latent": n_salient_latent,
            }
            train = {
                "schedule": studies.chosen_schedule(schedule, member),
                "max_epochs": max_epochs,
                "batch_size": batch_size,
                "train_size": TRAIN_SIZE,
                "early_stopping": inputs.can_hold_out(cells, study, 1 - TRAIN_SIZE),
            }
            settings = studies.FitSettings(
                preset=member, model={**latents, "likelihood": distribution}, train=train
            )
            model = pipeline.prepare_model(cells, folder, study, settings, seed=seed)
        if (kind := file_kinds.kind_of(counts)) is not file_kinds.Kind.h5ad:
            typer.echo(f"{counts} was read as a {kind.value}.", err=True)
        with _what_failed():
            pipeline.run_study(
                model, cells, folder, study, settings, method=embedding.value, seed=seed
            )


def _check_embedding(embedding: Embedding) -> None:
    """Find out before the fit, rather than after it, that umap-learn is not there."""
    if embedding is Embedding.umap and find_spec("umap") is None:
        raise ValueError("--embedding umap needs the umap-learn package: pip install umap-learn")
