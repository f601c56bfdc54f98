"""The shell: ``pyro-contrastive demo`` and ``pyro-contrastive fit``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

# Commands import what they need themselves, so that --help answers at once.

__all__ = ["app"]

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


class LikelihoodName(StrEnum):
    """What the data are taken to be."""

    zinb = "zinb"
    nb = "nb"
    poisson = "poisson"
    zip = "zip"
    bernoulli = "bernoulli"
    gaussian = "gaussian"


OutOption = Annotated[Path, typer.Option(help="Folder for the results.")]
EpochsOption = Annotated[int | None, typer.Option(min=1, help="Epochs at most.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")
]
EmbeddingOption = Annotated[Embedding, typer.Option(help="How to draw the latents in 2-D.")]


@contextmanager
def _one_line(*mistakes: type[Exception]) -> Iterator[None]:
    """Turn the user's mistakes into one line on standard error and exit code 2."""
    try:
        yield
    except mistakes as error:
        text = str(error)
        typer.echo("Error: " + " ".join(text.split()), err=True)
        raise typer.Exit(2) from error


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


@app.command()
def demo(
    out: OutOption = Path("demo_output"),
    max_epochs: EpochsOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    embedding: EmbeddingOption = Embedding.tsne,
) -> None:
    """Fit the bundled interferon data and explain the result on a web page."""
    with _one_line(OSError, ValueError):
        _check_embedding(embedding)
        from pyro_contrastive.report.inputs import prepare_folder  # noqa: PLC0415

        prepare_folder(out, overwrite=overwrite)
    from pyro_contrastive.report.demo import run_demo  # noqa: PLC0415

    run_demo(out, max_epochs=max_epochs, seed=seed, overwrite=overwrite, method=embedding.value)


@app.command()
def fit(
    counts: Annotated[
        Path, typer.Argument(help="Raw counts (or what --likelihood takes) as an .h5ad file.")
    ],
    condition_key: Annotated[str, typer.Option(help="Column of obs with the condition.")],
    background: Annotated[str, typer.Option(help="Its value for untreated (background) cells.")],
    out: OutOption,
    label_key: Annotated[
        str | None, typer.Option(help="Column of labels both conditions share, e.g. cell type.")
    ] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of batches to correct for.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the counts; X if not given.")] = None,
    likelihood: Annotated[
        LikelihoodName,
        typer.Option(
            help="Distribution of the data: of counts, of zeros and ones (bernoulli), or of "
            "log-normalised values (gaussian)."
        ),
    ] = LikelihoodName.zinb,
    n_background_latent: Annotated[int, typer.Option(min=1, help="Background latents.")] = 10,
    n_salient_latent: Annotated[int, typer.Option(min=1, help="Salient latents.")] = 10,
    max_epochs: EpochsOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    embedding: EmbeddingOption = Embedding.tsne,
) -> None:
    """Fit your own counts and write the same page for them."""
    with _one_line(OSError, ValueError):
        _check_embedding(embedding)
        from pyro_contrastive.report.inputs import (  # noqa: PLC0415
            check_columns,
            prepare_folder,
            read_counts,
        )
        from pyro_contrastive.report.study import (  # noqa: PLC0415
            FitSettings,
            Study,
            named_likelihood,
        )

        study = Study(
            name=f"{counts.stem}_latents",
            title=f"{counts.stem}: what is shared and what is salient",
            lead=f"Background: cells whose {condition_key} is {background}. Target: all others.",
            condition_key=condition_key,
            background=background,
            label_key=label_key,
            label_name=(label_key or "labels").replace("_", " "),
            batch_key=batch_key,
            layer=layer,
            source=f"File {counts.name}.",
        )
        cells = read_counts(counts)
        check_columns(cells, study)
        folder = prepare_folder(out, overwrite=overwrite)
        from pyro_contrastive.report.pipeline import register, run_study  # noqa: PLC0415

        distribution = named_likelihood(likelihood.value)
        register(cells, study, distribution)
    settings = FitSettings(
        model={
            "n_background_latent": n_background_latent,
            "n_salient_latent": n_salient_latent,
            "likelihood": distribution,
        },
        train={"max_epochs": max_epochs, "train_size": 0.9, "early_stopping": True},
    )
    run_study(cells, folder, study, settings, method=embedding.value, seed=seed)


def _check_embedding(embedding: Embedding) -> None:
    """Find out before the fit, rather than after it, that umap-learn is not there."""
    if embedding is Embedding.umap and find_spec("umap") is None:
        raise ValueError("--embedding umap needs the umap-learn package: pip install umap-learn")
