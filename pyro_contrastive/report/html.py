"""Render the page: one HTML file that contains all tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from platform import python_version

import pandas as pd
from jinja2 import Environment, StrictUndefined

from pyro_contrastive import __version__
from pyro_contrastive.report.page import ReportPage

__all__ = ["installed_versions", "write_report"]

_PACKAGES = ("pyro-ppl", "torch", "anndata", "numpy", "scikit-learn")

# Explanations of the measures in the table of scores.
_MEASURES = {
    "mixing": (
        "Among as many background as target cells, take each cell's nearest neighbours and ask how "
        "varied their conditions are (entropy), relative to all these cells together. 1: every "
        "neighbourhood looks like the whole. 0: every neighbourhood holds one condition."
    ),
    "silhouette": (
        "How much closer a cell is to its own group than to the next one. 1: compact groups, far "
        "apart. 0: groups that overlap. Below 0: many cells lie nearer to another group."
    ),
    "NMI": (
        "Cluster the cells (k-means, as many clusters as labels) and compare clusters with labels: "
        "normalised mutual information. 1: clusters determine the label. 0: they carry no "
        "information on it."
    ),
    "ARI": (
        "The same clusters, compared with the labels pair of cells by pair of cells: adjusted Rand "
        "index. 1: identical groupings. 0: as expected by chance."
    ),
}


def installed_versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """List the versions of Python and of the packages that a result depends on.

    Parameters
    ----------
    packages
        Names as installed, besides Python and this package. Default: what it computes with.

    Returns
    -------
    dict of str to str
        Version by name; "not installed" for a package without metadata.
    """
    found = {"pyro_contrastive": __version__, "python": python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_report(path: str | Path, page: ReportPage) -> Path:
    """Write a page that shows and explains the results of one fit.

    Parameters
    ----------
    path
        The file to write; replaced if it exists.
    page
        Its content.

    Returns
    -------
    pathlib.Path
        The file written. Everything is inside it: it refers to no other file and no network.
    """
    study, counts, figures = page.study, page.cell_counts, page.figures
    background = study.columns.background
    measures = [name for name in _MEASURES if name in set(page.scores["measure"])]
    html = (
        _environment()
        .from_string(_template())
        .render(
            title=study.title,
            lead=study.lead,
            background=background,
            targets=[str(name) for name in counts.columns if name != background],
            counts=counts,
            n_cells=int(counts.to_numpy().sum()),
            n_genes=page.n_genes,
            answer=page.answer,
            gene_figures=figures.genes,
            scores=page.scores.to_dict("records"),
            label_name=study.label_name,
            measures={name: _MEASURES[name] for name in measures},
            latent_figures=figures.latents,
            training_figures=figures.training,
            score_figures=figures.scores,
            training=page.training,
            settings=page.settings,
            tables=page.tables,
            source=[line for line in study.source.splitlines() if line.strip()],
            file_list=page.file_list,
            loading_code=page.loading_code,
            versions=installed_versions() if page.versions is None else page.versions,
            not_made=page.not_made,
        )
    )
    # A file name may have bytes that are not text, which UTF-8 cannot write.
    Path(path).write_text(html, encoding="utf-8", errors="replace")
    return Path(path)


def _environment() -> Environment:
    # Gene and cell type names come from files of unknown origin: everything is escaped.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _format_cell
    environment.filters["share"] = lambda value: f"{100 * min(max(float(value), 0.0), 1.0):.0f}%"
    return environment


def _template() -> str:
    return (files("pyro_contrastive.report") / "template.html.j2").read_text(encoding="utf-8")


def _format_cell(value: object) -> str:
    """Format a number for readers; a number that is not finite becomes a dash."""
    if isinstance(value, str) or pd.api.types.is_bool(value):
        return str(value)
    if pd.api.types.is_integer(value):
        return f"{value:,}"
    if not pd.api.types.is_float(value):
        return str(value)
    number = float(value)  # type: ignore[arg-type]
    if not -float("inf") < number < float("inf"):
        return "\N{EN DASH}"
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:#.3g}"  # noqa: PLR2004
