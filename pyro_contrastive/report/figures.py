"""The figures of one fit: as PNG files for the folder and with captions for the page."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_contrastive.analysis.embedding import embed_2d
from pyro_contrastive.plotting import plot_embedding, plot_history, plot_scores
from pyro_contrastive.plotting.categories import legend_width
from pyro_contrastive.plotting.scores import two_decimals
from pyro_contrastive.report.page import ReportFigure, figure_png

__all__ = ["FigureSet", "add_curves", "add_maps", "add_scores", "draw_figures"]

Method = Literal["tsne", "umap", "pca"]

_MAX_CELLS = 8_000
_AXIS_NAMES = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PC"}
# What to look for, by latent and colouring.
_CAPTIONS = {
    ("background", "condition"): "What to see: the colours should be mixed everywhere. A region of "
    "one colour is response that the background latent has kept, or a kind of cell that only one "
    "condition has.",
    ("salient", "condition"): "What to see: the colours should come apart. Treated cells that stay "
    "among the background cells did not respond, or respond in a way the model did not catch.",
    ("background", "labels"): "What to see: the colours should form regions of their own, each of "
    "them holding cells of both conditions (compare with the map by condition).",
    ("salient", "labels"): "What to see: among treated cells the colours should be mixed, unless "
    "labels respond differently. Regions of one colour are such differences, or leakage.",
}


@dataclass
class FigureSet:
    """The figures of one fit.

    Parameters
    ----------
    genes, latents, training, scores
        Captioned figures for the page's sections.
    files
        PNG bytes by file name, for the folder.
    """

    genes: list[ReportFigure] = field(default_factory=list)
    latents: list[ReportFigure] = field(default_factory=list)
    training: list[ReportFigure] = field(default_factory=list)
    scores: list[ReportFigure] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def add(self, section: list[ReportFigure], name: str, figure: Figure, **texts: str) -> None:
        """Render `figure` once, as ``name.png`` for the folder and for a section of the page."""
        png = figure_png(figure)
        self.files[f"{name}.png"] = png
        section.append(ReportFigure(image=png, **texts))

    def save(self, folder: Path) -> None:
        """Write all PNG files into `folder`, making it if necessary."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, png in self.files.items():
            try:
                (folder / name).write_bytes(png)
            except BaseException:  # no file is better than half a file
                (folder / name).unlink(missing_ok=True)
                with suppress(OSError):
                    folder.rmdir()  # kept if it contains other files
                raise


def draw_figures(
    latents: Mapping[str, NDArray[Any]],
    colorings: Mapping[str, pd.Series],
    history: Mapping[str, pd.DataFrame],
    scores: pd.DataFrame,
    *,
    background: str | None = None,
    method: Method = "tsne",
    seed: int = 0,
) -> FigureSet:
    """Draw the maps of both latents, the training curves and the scores.

    Parameters
    ----------
    latents
        ``"background"`` and ``"salient"`` coordinates [cells, latents].
    colorings
        Values that colour the cells: ``"condition"`` and, if there are labels, ``"labels"``
        [cells]. Figures and captions use the name of the series.
    history
        Training history, see :func:`pyro_contrastive.plotting.plot_history`.
    scores
        Scores, see :func:`pyro_contrastive.plotting.plot_scores`.
    background
        Name of the background condition, whose cells are grey: see
        :func:`pyro_contrastive.plotting.plot_embedding`. Default: none is.
    method
        How to map to two dimensions. Default t-SNE. If there are more than 8,000 cells, a random
        8,000 are mapped.
    seed
        Seed of the maps and of the choice of cells. Default 0.

    Returns
    -------
    FigureSet
        One map per latent and colouring, a panel of them all, the curves and the scores.
    """
    figures = FigureSet()
    add_maps(figures, latents, colorings, background=background, method=method, seed=seed)
    add_curves(figures, history)
    add_scores(figures, scores)
    return figures


def add_maps(
    figures: FigureSet,
    latents: Mapping[str, NDArray[Any]],
    colorings: Mapping[str, pd.Series],
    *,
    background: str | None = None,
    method: Method = "tsne",
    seed: int = 0,
) -> None:
    """Add a map for each latent and colouring, and a panel of all maps, as in `draw_figures`."""
    shown = _shown_cells(len(colorings["condition"]), seed)
    maps = {name: embed_2d(latents[name][shown], method, seed=seed) for name in latents}
    colors = {name: values.iloc[shown] for name, values in colorings.items()}
    # The random subset shown may contain no background cell.
    is_there = background in set(colors["condition"].astype(str))
    grey = {"condition": background if is_there else None}
    for of, values in colors.items():
        for latent, coords in maps.items():
            _add_map(figures, latent, of, coords, values, grey.get(of), _AXIS_NAMES[method])
    figures.files["latents.png"] = figure_png(_panel(maps, colors, grey, _AXIS_NAMES[method]))


def _add_map(
    figures: FigureSet,
    latent: str,
    of: str,
    coords: NDArray[np.float64],
    values: pd.Series,
    background: str | None,
    axis_name: str,
) -> None:
    name = str(values.name)
    figure = _blank(max(5.5, 4.0 + _legend_width(values)), 4.0)
    plot_embedding(
        coords,
        values,
        background=background,
        ax=figure.subplots(),
        legend_title=name,
        axis_name=axis_name,
    )
    of_grey = "" if background is None else f" Grey: {background}."
    figures.add(
        figures.latents,
        f"{latent}_by_{of}",
        figure,
        title=f"{latent.capitalize()} latent, coloured by {name}",
        alt=f"{axis_name} map of {len(coords):,} cells in the {latent} latent, coloured by {name} "
        f"({values.nunique()} categories).",
        reading=_CAPTIONS[latent, of] + of_grey,
    )


def add_curves(figures: FigureSet, history: Mapping[str, pd.DataFrame]) -> None:
    """Add the training curves."""
    figure = _blank(6.2, 3.7)
    plot_history(history, ax=figure.subplots())
    figures.add(
        figures.training,
        "training",
        figure,
        title="Training curves",
        alt="Negative ELBO of training cells and of held-out cells by epoch.",
        reading="What to see: both curves should fall and level off, close together. Still falling "
        "at the end: train for longer. Held-out curve rising again: the model is memorising, "
        "train for less time or stop early. The first epochs may run off the top.",
    )


def add_scores(figures: FigureSet, scores: pd.DataFrame) -> None:
    """Add the dot plot of the scores."""
    figure = _blank(6.2, 0.9 + 0.42 * len(scores))
    plot_scores(scores, ax=figure.subplots())
    values = "; ".join(
        f"{row.measure} of {row.of} in {row.latent} {two_decimals(row.value)}"
        for row in scores.itertuples()
    )
    figures.add(
        figures.scores,
        "scores",
        figure,
        title="All scores on one scale",
        alt=f"Dot plot of the scores: {values}.",
        reading="What to see: each dot should lie near its triangle, which marks the better end. "
        "Blue: background latent. Orange: salient latent. The ends themselves are seldom reached.",
    )


def _panel(
    maps: Mapping[str, NDArray[np.float64]],
    colors: Mapping[str, pd.Series],
    grey: Mapping[str, str | None],
    axis_name: str,
) -> Figure:
    """All maps in one figure: a column per latent, a row per colouring."""
    widest = max(_legend_width(values) for values in colors.values())
    figure = _blank(max(10.5, 8.4 + widest), 4.2 * len(colors))
    grid = figure.subplots(len(colors), len(maps), squeeze=False)
    for row, (of, values) in enumerate(colors.items()):
        for column, (latent, coords) in enumerate(maps.items()):
            plot_embedding(
                coords,
                values,
                background=grey.get(of),
                ax=grid[row, column],
                title=f"{latent} latent" if row == 0 else None,
                legend_title=str(values.name),
                legend=column == len(maps) - 1,
                axis_name=axis_name,
            )
    return figure


def _shown_cells(n_cells: int, seed: int) -> NDArray[np.intp]:
    chosen = np.random.default_rng(seed).permutation(n_cells)[:_MAX_CELLS]
    return np.sort(chosen)


def _legend_width(values: pd.Series) -> float:
    return legend_width([str(name) for name in values.unique()])


def _blank(width: float, height: float) -> Figure:
    # Not made by pyplot, so that no figure stays open, whatever the backend.
    return Figure(figsize=(width, height), layout="constrained")
