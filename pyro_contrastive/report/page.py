"""The content of a page of results: figures and tables with captions, texts and settings."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from pyro_contrastive.report.study import Study

if TYPE_CHECKING:
    from pyro_contrastive.report.figures import FigureSet

__all__ = ["Answer", "ReportFigure", "ReportPage", "ReportTable", "figure_png"]

_DPI = 150


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
        Description of the image, for readers who cannot see it.
    reading
        The caption, which explains how to read it.
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


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The section that leads the page: which genes respond.

    Parameters
    ----------
    sentences
        What was found, in words.
    cautions
        What limits it: warnings of the setup, refusals.
    tables
        Tables of genes.
    null
        What shuffled conditions give. Default: not made.
    """

    sentences: Sequence[str] = ()
    cautions: Sequence[str] = ()
    tables: Sequence[ReportTable] = ()
    null: ReportTable | None = None


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


@dataclass(frozen=True, kw_only=True)
class ReportPage:
    """The content of the page that explains one fit.

    Parameters
    ----------
    study
        What was compared; its title, lead, source and names head the page.
    cell_counts
        Number of cells: one column per condition, one row per label (one row if there are none).
    n_genes
        Number of genes fitted.
    answer
        Which genes respond, the first section. Default: empty.
    scores
        Table of :func:`pyro_contrastive.analysis.separation.score_latents`; the sections on scores
        are left out if it has no rows.
    figures
        Figures of the latents, the training and the scores.
    training
        Summary of the training by name, such as epochs and wall time. The first three head the
        page.
    settings
        Settings of the model and of the training, by name.
    tables
        Further tables. Default: none.
    file_list
        What each file of the folder holds, by name. Default: left out.
    loading_code
        Python that loads the results. Default: left out.
    versions
        Versions by package. Default: those installed.
    not_made
        Sentences on results that could not be made, shown at the top. Default: none.

    Raises
    ------
    ValueError
        If the background of `study` is not a column of `cell_counts`.
    """

    study: Study
    cell_counts: pd.DataFrame
    n_genes: int
    scores: pd.DataFrame
    figures: FigureSet
    training: Mapping[str, str]
    settings: Mapping[str, object]
    answer: Answer = field(default_factory=Answer)
    tables: Sequence[ReportTable] = ()
    file_list: Mapping[str, str] = field(default_factory=dict)
    loading_code: str = ""
    versions: Mapping[str, str] | None = None
    not_made: Sequence[str] = ()

    def __post_init__(self) -> None:
        background, columns = self.study.columns.background, self.cell_counts.columns
        if background not in columns:
            found = ", ".join(map(str, columns))
            raise ValueError(f"cell_counts has no column {background!r}; it has: {found}")
