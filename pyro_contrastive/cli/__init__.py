"""The shell: ``pyro-contrastive demo``, ``fit`` and ``genes``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from pyro_contrastive._tools.shell import (
    errors_on_one_line,
    plain_warnings,
    print_error,
    refuse_torchrun,
)
from pyro_contrastive.cli.options import (
    CategoricalOption,
    ContinuousOption,
    Embedding,
    EmbeddingOption,
    EpochsOption,
    GuideOption,
    LikelihoodOption,
    NullOption,
    OnDiskOption,
    OutOption,
    OverwriteOption,
    PresetOption,
    RefineOption,
    ResumeOption,
    SampleOption,
    Schedule,
    ScheduleOption,
    SeedOption,
)

# Commands import what they need themselves, so that --help answers at once.

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@contextmanager
def _what_failed() -> Iterator[None]:
    """Report which results could not be made, on a line each, and where the others are."""
    from pyro_contrastive.report.failures import ResultsError  # noqa: PLC0415
    from pyro_contrastive.training.finite import NonFiniteLossError  # noqa: PLC0415

    try:
        with plain_warnings():
            yield
    except ResultsError as error:
        for failure in error.failures:
            print_error(failure)
        with suppress(OSError, ValueError):  # standard output has been closed
            typer.echo(error.kept)
        raise typer.Exit(1) from error
    except NonFiniteLossError as error:
        print_error(str(error))
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        print_error(str(error) or "Interrupted.")
        raise typer.Exit(130) from error  # the exit code that shells expect after Ctrl-C


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
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
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
        with errors_on_one_line(OSError, ValueError):
            refuse_torchrun()
            _check_embedding(embedding)
            from pyro_contrastive.report.folder import reserve_folder  # noqa: PLC0415

            folder = stack.enter_context(reserve_folder(out, "kang", overwrite=overwrite))
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
    sample_key: SampleOption = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of batches to correct for.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer with the counts. Default: X.")] = None,
    categorical_covariate: CategoricalOption = None,
    continuous_covariate: ContinuousOption = None,
    size_factor: Annotated[
        str | None,
        typer.Option(help="Column of size factors. Default: total counts."),
    ] = None,
    preset: PresetOption = "separated",
    likelihood: LikelihoodOption = None,
    guide: GuideOption = None,
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
    refine: RefineOption = False,
    null_shuffles: NullOption = None,
    on_disk: OnDiskOption = None,
    resume: ResumeOption = None,
) -> None:
    """Fit your own counts and write the same page for them.

    Without further options the model is the one the README recommends:
    the preset "separated" with the fast schedule, as in the demo.
    --preset none gives the plain model of scvi-tools, as do
    ContrastiveVI(adata) and train() in Python.
    """
    given = locals()
    with ExitStack() as stack:
        # Refuse here everything that can be refused, before any work is lost.
        with errors_on_one_line(OSError, ValueError):
            refuse_torchrun()
            _check_embedding(embedding)
            from pyro_contrastive.report import file_kinds, inputs  # noqa: PLC0415
            from pyro_contrastive.report import folder as folders  # noqa: PLC0415
            from pyro_contrastive.report import resume as resumes  # noqa: PLC0415
            from pyro_contrastive.report import study as studies  # noqa: PLC0415

            member = studies.known_preset(preset)
            columns = studies.Columns(
                condition_key=condition_key,
                background=background,
                layer=layer,
                batch_key=batch_key,
                size_factor_key=size_factor,
                categorical_covariate_keys=tuple(categorical_covariate or ()),
                continuous_covariate_keys=tuple(continuous_covariate or ()),
                sample_key=sample_key,
            )
            study = studies.study_of_file(counts, columns, label_key)
            killed = None if resume is None else resumes.killed_run(out)
            reserved = folders.reserve_folder(
                out, study.name, overwrite=overwrite, source=counts, killed=killed
            )
            folder = stack.enter_context(reserved)
            resumes.note_command(folder, given)
            cells, layer = inputs.read_cells(counts, layer, on_disk=on_disk)
            study = replace(study, columns=replace(columns, layer=layer))
            inputs.check_columns(cells, study)
            from pyro_contrastive.report import pipeline  # noqa: PLC0415

            distribution = studies.chosen_likelihood(likelihood, member)
            study = pipeline.register(cells, study, distribution)
            settings = studies.fit_settings(
                member,
                distribution,
                schedule,
                n_latents=(n_background_latent, n_salient_latent),
                max_epochs=max_epochs,
                batch_size=batch_size,
                guide=guide,
                may_stop_early=inputs.can_hold_out(cells, study, 1 - studies.TRAIN_SIZE),
                refine=refine,
                null_shuffles=null_shuffles,
            )
            model = pipeline.prepare_model(cells, folder, study, settings, seed=seed)
        if (kind := file_kinds.kind_of(counts)) is not file_kinds.Kind.h5ad:
            typer.echo(f"{counts} was read as a {kind.value}.", err=True)
        with _what_failed():
            pipeline.run_study(
                model, cells, folder, study, settings, method=embedding.value, seed=seed
            )


@app.command()
def genes(
    results: Annotated[Path, typer.Argument(help="Folder that fit or demo wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables and their figures.")],
    label_key: Annotated[
        str | None, typer.Option(help="Column of labels, e.g. cell type. Default: none.")
    ] = None,
    sample_key: SampleOption = None,
    cells_as_replicates: Annotated[
        bool,
        typer.Option("--cells-as-replicates", help="Whatever donors the fit was told of."),
    ] = False,
    strata: Annotated[
        str,
        typer.Option(help="Compare within so many clusters of the background latent, or a column."),
    ] = "8",
    lfc_threshold: Annotated[
        float, typer.Option(min=0, help="Smallest log2 fold change of interest.")
    ] = 0.0,
    fdr: Annotated[float, typer.Option(min=0, max=1, help="False discovery rate.")] = 0.05,
    seed: SeedOption = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace tables that are there.")
    ] = False,
) -> None:
    """Make the tables of genes of a fit again, with other groups or donors."""
    with errors_on_one_line(OSError, ValueError, KeyError), plain_warnings():
        if cells_as_replicates and sample_key is not None:
            raise ValueError("--sample-key and --cells-as-replicates contradict each other")
        from pyro_contrastive.report import again  # noqa: PLC0415
        from pyro_contrastive.report.genes import GeneRequest  # noqa: PLC0415

        again.check_target(out, overwrite=overwrite)
        request = GeneRequest(
            labels=label_key,
            sample_key=False if cells_as_replicates else sample_key,
            strata=int(strata) if strata.isdecimal() else strata,
            lfc_threshold=lfc_threshold,
            fdr_target=fdr,
            seed=seed,
        )
        written, lines = again.write_again(again.genes_again(results, request), out)
    for line in [*lines, f"In {out}: {', '.join(written)}."]:
        typer.echo(line)


def _check_embedding(embedding: Embedding) -> None:
    """Fail before the fit rather than after it if umap-learn is missing."""
    if embedding is Embedding.umap and find_spec("umap") is None:
        raise ValueError("--embedding umap needs the umap-learn package: pip install umap-learn")
