"""The page: tables and figures in, one HTML file with everything inside it out."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from platform import python_version

import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from pyro_contrastive import __version__

__all__ = ["ReportFigure", "ReportTable", "installed_versions", "write_report"]

_PACKAGES = ("pyro-ppl", "torch", "anndata", "numpy", "scikit-learn")
_DPI = 150

# What each measure is, for the table of scores; measures that are not listed get no explanation.
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
        "normalised mutual information. 1: clusters give the label away. 0: they say nothing of it."
    ),
    "ARI": (
        "The same clusters, compared with the labels pair of cells by pair of cells: adjusted Rand "
        "index. 1: identical groupings. 0: what chance alone would give."
    ),
}


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """A figure of the page.

    Parameters
    ----------
    title
        Short heading.
    image
        A matplotlib figure, or the bytes of a PNG.
    alt
        What the image shows, for readers who cannot see it.
    reading
        How to read it: the caption.
    """

    title: str
    image: Figure | bytes
    alt: str
    reading: str

    @property
    def uri(self) -> str:
        """The image as a ``data:`` address, so that the page needs no other file."""
        png = self.image if isinstance(self.image, bytes) else figure_png(self.image)
        return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table of the page.

    Parameters
    ----------
    title
        Short heading.
    table
        The table; the index is its first column.
    reading
        How to read it.
    """

    title: str
    table: pd.DataFrame
    reading: str


def figure_png(figure: Figure) -> bytes:
    """Render a figure.

    Parameters
    ----------
    figure
        Any matplotlib figure; it is left open.

    Returns
    -------
    bytes
        A PNG of 150 dots per inch on white.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
    return buffer.getvalue()


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


def write_report(
    path: str | Path,
    *,
    title: str,
    lead: str,
    background_category: str,
    cell_counts: pd.DataFrame,
    n_genes: int,
    scores: pd.DataFrame,
    latent_figures: Sequence[ReportFigure],
    training: Mapping[str, str],
    settings: Mapping[str, object],
    training_figures: Sequence[ReportFigure] = (),
    score_figures: Sequence[ReportFigure] = (),
    tables: Sequence[ReportTable] = (),
    label_name: str = "labels",
    source: str = "",
    file_list: Mapping[str, str] | None = None,
    loading_code: str = "",
    versions: Mapping[str, str] | None = None,
    not_made: Sequence[str] = (),
) -> Path:
    """Write a page that shows and explains the results of one fit.

    Parameters
    ----------
    path
        The file to write; replaced if it exists.
    title, lead
        Heading of the page, and a sentence or two under it.
    background_category
        Name of the background condition, a column of `cell_counts`.
    cell_counts
        Number of cells: one column per condition, one row per label (one row if there are none).
    n_genes
        Number of genes fitted.
    scores
        Table of :func:`pyro_contrastive.analysis.separation.score_latents`; sections on scores are
        left out if it has no rows.
    latent_figures
        Maps of the latents, shown two abreast.
    training
        Facts of the training by name, such as epochs and wall time. The first three head the page.
    settings
        Settings of the model and of the training, by name.
    training_figures, score_figures
        Figures for the sections on training and on scores. Default: none.
    tables
        Further tables. Default: none.
    label_name
        What the page calls the labels, such as "cell type".
    source
        Where the data come from; lines become paragraphs. Default: left out.
    file_list
        What each file of the folder holds, by name. Default: left out.
    loading_code
        Python that loads the results. Default: left out.
    versions
        Versions by package. Default: :func:`installed_versions`.
    not_made
        Sentences on results that could not be made, shown at the top. Default: none.

    Returns
    -------
    pathlib.Path
        The file written. Everything is inside it: it refers to no other file and no network.

    Raises
    ------
    ValueError
        If `background_category` is not a column of `cell_counts`.
    """
    if background_category not in cell_counts.columns:
        found = ", ".join(map(str, cell_counts.columns))
        raise ValueError(f"cell_counts has no column {background_category!r}; it has: {found}")
    measures = [name for name in _MEASURES if name in set(scores["measure"])]
    page = _environment().from_string(_template())
    html = page.render(
        title=title,
        lead=lead,
        background=background_category,
        targets=[str(name) for name in cell_counts.columns if name != background_category],
        counts=cell_counts,
        n_cells=int(cell_counts.to_numpy().sum()),
        n_genes=n_genes,
        scores=scores.to_dict("records"),
        label_name=label_name,
        measures={name: _MEASURES[name] for name in measures},
        latent_figures=latent_figures,
        training_figures=training_figures,
        score_figures=score_figures,
        training=training,
        settings=settings,
        tables=tables,
        source=[line for line in source.splitlines() if line.strip()],
        file_list=file_list or {},
        loading_code=loading_code,
        versions=installed_versions() if versions is None else versions,
        not_made=not_made,
    )
    # A file name may have bytes that are no text, which UTF-8 cannot write.
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
    """Numbers as people write them; a number that is not finite as a dash."""
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
