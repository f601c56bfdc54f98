"""The stages that make the results: model, latents, scores, figures, page."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.analysis.null_check import NullCheck
from pyro_contrastive.analysis.separation import score_latents
from pyro_contrastive.data.files import write_h5ad
from pyro_contrastive.report.answer import add_gene_figures, answer_of
from pyro_contrastive.report.failures import KeptElsewhere, message_of
from pyro_contrastive.report.figures import FigureSet, Method, add_curves, add_maps, add_scores
from pyro_contrastive.report.folder import ResultsFolder, interrupts_wait
from pyro_contrastive.report.genes import (
    NULL_FILE,
    GeneRequest,
    GeneTables,
    make_tables,
    write_tables,
)
from pyro_contrastive.report.html import write_report
from pyro_contrastive.report.page import ReportPage, ReportTable
from pyro_contrastive.report.study import LATENTS, FitSettings, FittedModel, Study, flat_settings
from pyro_contrastive.report.summary import training_facts
from pyro_contrastive.report.tables import cell_counts, response_table

__all__ = ["STAGES", "Results", "Stage"]

_MAX_NEIGHBORS = 50
_FEWEST_SCORED = 10
_RESPONSE_GENES = 8


@dataclass
class Results:
    """Input of the stages, and the results that they have made so far."""

    model: FittedModel
    adata: ad.AnnData
    study: Study
    settings: FitSettings
    seconds: float
    method: Method
    seed: int
    place: ResultsFolder
    latents: dict[str, NDArray[Any]] = field(default_factory=dict)
    scores: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(
            columns=["latent", "of", "measure", "value", "chance", "best", "reading"]
        )
    )
    tables: GeneTables = field(default_factory=lambda: GeneTables(request=GeneRequest()))
    null: NullCheck | None = None
    no_null: str = ""
    figures: FigureSet = field(default_factory=FigureSet)
    failures: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    interrupted: bool = False

    @property
    def folder(self) -> Path:
        """Where files are written."""
        return self.place.new

    @property
    def condition(self) -> pd.Series:
        """Condition by cell."""
        return self.adata.obs[self.study.columns.condition_key].rename("condition")

    @property
    def labels(self) -> pd.Series | None:
        """Label by cell, if there are labels."""
        key = self.study.label_key
        return None if key is None else self.adata.obs[key].rename(self.study.label_name)

    @property
    def n_neighbors(self) -> int:
        """Number of neighbours used by the scores."""
        return min(_MAX_NEIGHBORS, len(self.scored) // 4)

    @property
    def scored(self) -> NDArray[np.int64]:
        """Positions of the cells that are scored: those that did not train, if there are enough."""
        held_out = self.model.held_out_indices
        if held_out is not None:
            is_background = self.condition.astype(str).to_numpy() == self.study.columns.background
            n_background = int(is_background[held_out].sum())
            if min(n_background, len(held_out) - n_background) >= _FEWEST_SCORED:
                return held_out
        return np.arange(self.adata.n_obs)


@dataclass(frozen=True)
class Stage:
    """One result.

    Parameters
    ----------
    what
        Name of the result, for the message if it cannot be made.
    make
        Function that makes it.
    file
        The file it writes, deleted if the stage fails midway. Default: none.
    needs
        Stages that it depends on.
    """

    what: str
    make: Callable[[Results], None]
    file: str | None = None
    needs: tuple[str, ...] = ()


def _refine(results: Results) -> None:
    if results.settings.refine:
        results.model.refine_posterior()


def _save_model(results: Results) -> None:
    try:
        with interrupts_wait():
            results.model.save(str(results.folder / "model"), overwrite=True)
    except KeyboardInterrupt:  # delayed until the model was complete
        results.interrupted = True
    except Exception as error:
        place = Path(tempfile.mkdtemp(prefix="pyro_contrastive_")) / "model"
        results.model.save(str(place), overwrite=True)
        raise KeptElsewhere(f"{message_of(error)}; it was saved in {place} instead") from error


def _read_latents(results: Results) -> None:
    choice: dict[str, Any] = {"refine": True} if results.settings.refine else {}
    for kind in LATENTS:
        latent = results.model.get_latent_representation(representation_kind=kind, **choice)
        results.latents[kind] = np.asarray(latent)


def _write_table(results: Results) -> None:
    columns = {
        f"{kind}_{at}": values
        for kind, latent in results.latents.items()
        for at, values in enumerate(latent.T)
    }
    table = pd.DataFrame(columns, index=results.adata.obs_names.rename("cell"))
    table.to_csv(results.folder / "latents.csv")


def _write_data(results: Results) -> None:
    adata = results.adata
    adata.obsm.update({f"X_{kind}": latent for kind, latent in results.latents.items()})
    if results.place.free_bytes() < results.place.data_bytes:  # HDF5 may crash on a full disk
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write_h5ad(adata, results.folder / f"{results.study.name}.h5ad", compression="gzip")


def _test_genes(results: Results) -> None:
    request = GeneRequest(labels=results.study.label_key, seed=results.seed)
    results.tables = make_tables(results.model, request)
    write_tables(results.tables, results.folder)


def _check_null(results: Results) -> None:
    n = results.settings.null_shuffles
    if not n:
        results.no_null = "no fits to shuffled conditions were asked for (--null-shuffles 3)"
        return
    try:
        results.null = results.model.null_check(n, seed=results.seed)
    except ValueError as error:  # too few cells held out, or nothing to shuffle
        results.no_null = str(error)
        return
    results.null.table.to_csv(results.folder / NULL_FILE)


def _draw_genes(results: Results) -> None:
    add_gene_figures(results.figures, results.tables, results.study.label_name)


def _score(results: Results) -> None:
    cells = results.scored
    results.scores = score_latents(
        results.latents["background"][cells],
        results.latents["salient"][cells],
        results.condition.iloc[cells],
        labels=None if results.labels is None else results.labels.iloc[cells],
        background_category=results.study.columns.background,
        n_neighbors=results.n_neighbors,
        seed=results.seed,
    )
    results.scores.to_csv(results.folder / "scores.csv", index=False)


def _draw_maps(results: Results) -> None:
    labels = results.labels
    add_maps(
        results.figures,
        results.latents,
        {"condition": results.condition} | ({} if labels is None else {"labels": labels}),
        background=results.study.columns.background,
        method=results.method,
        seed=results.seed,
    )


def _draw_curves(results: Results) -> None:
    add_curves(results.figures, results.model.history)


def _draw_scores(results: Results) -> None:
    add_scores(results.figures, results.scores)


def _save_figures(results: Results) -> None:
    if results.figures.files:
        results.figures.save(results.folder / "figures")


def _write_page(results: Results) -> None:
    study, background = results.study, results.study.columns.background
    page = ReportPage(
        study=study,
        cell_counts=cell_counts(results.condition, results.labels, background),
        n_genes=results.adata.n_vars,
        answer=answer_of(
            results.tables,
            study.label_name,
            cautions=study.cautions,
            null=results.null,
            no_null=results.no_null,
        ),
        scores=results.scores,
        figures=results.figures,
        training=training_facts(results.model.history, results.seconds),
        settings=flat_settings(
            results.settings, seed=results.seed, n_neighbors=results.n_neighbors
        ),
        tables=[_response(results.adata, results.condition, study)],
        file_list=_file_list(results),
        loading_code=_loading_code(results),
        not_made=results.failures,
    )
    write_report(results.folder / "index.html", page)


STAGES = {
    "posteriors": Stage("The refined posteriors", _refine),
    "model": Stage("The model", _save_model, "model"),
    "latents": Stage("The latents", _read_latents, needs=("posteriors",)),
    "table": Stage("latents.csv", _write_table, "latents.csv", needs=("latents",)),
    "data": Stage("{name}.h5ad", _write_data, "{name}.h5ad", needs=("latents",)),
    "genes": Stage("The tables of genes", _test_genes),
    "null": Stage("null_check.csv", _check_null, NULL_FILE),
    "volcano": Stage("The figures of the genes", _draw_genes, needs=("genes",)),
    "scores": Stage("scores.csv", _score, "scores.csv", needs=("latents",)),
    "maps": Stage("The maps of the latents", _draw_maps, needs=("latents",)),
    "curves": Stage("The figure of the training", _draw_curves),
    "dots": Stage("The figure of the scores", _draw_scores, needs=("scores",)),
    "figures": Stage("A file in figures/", _save_figures),
    "page": Stage("The page index.html", _write_page, "index.html"),
}


def _response(adata: ad.AnnData, condition: pd.Series, study: Study) -> ReportTable:
    is_target = condition.astype(str).to_numpy() != study.columns.background
    chosen = "Genes known to respond" if study.genes else "The genes that differ most"
    return ReportTable(
        title="Is there a response at all?",
        table=response_table(
            adata, is_target, genes=study.genes, n_top=_RESPONSE_GENES, layer=study.columns.layer
        ),
        reading=f"{chosen}, in the data themselves and without any model. If these rows show "
        "little difference between the two groups of cells, a salient latent that shows much "
        "should not be believed.",
    )


def _file_list(results: Results) -> dict[str, str]:
    refined = ", with the refined posterior of every cell" if results.settings.refine else ""
    listed = {
        "index.html": "this page",
        f"{results.study.name}.h5ad": "the counts, with both latents in obsm",
        "latents.csv": "both latents as a table with a row for each cell",
        "model/": f"the fitted model{refined}",
        "genes.csv": "the test of every gene between the conditions",
        "genes_by_label.csv": "the same among the cells of every label",
        "effects.csv": "the effect on every gene by label and donor, with its interval",
        "null_check.csv": "what the fit finds, beside what fits to shuffled conditions find",
        "scores.csv": "the table of scores",
        "figures/": "the figures of this page as PNG, and latents.png with all maps in one",
        "manifest.json": "the list of all files; the next run replaces only these",
    }
    made_later = {"index.html", "manifest.json"}
    return {
        name: what
        for name, what in listed.items()
        if name in made_later or (results.folder / name).exists()
    }


def _loading_code(results: Results) -> str:
    if {"model", "data"} & results.failed:
        return ""
    file = json.dumps(f"{results.study.name}.h5ad", ensure_ascii=False)
    return f"""\
import anndata as ad
from pyro_contrastive import ContrastiveVI

cells = ad.read_h5ad({file})
cells.obsm["X_background"]  # background latent [cells, latents]
cells.obsm["X_salient"]     # salient latent [cells, latents]
model = ContrastiveVI.load("model", adata=cells)"""
