"""Which cells of a data set trained the model, and which did not."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.data.counts import counts_of
from pyro_contrastive.data.indices import as_indices
from pyro_contrastive.observed.source import as_observed

if TYPE_CHECKING:
    from pyro_contrastive.methods.base import ModelBase

__all__ = ["cells_to_judge", "held_out_cells", "held_out_or_given", "trained_cells"]

Indices = NDArray[np.int64]
logger = logging.getLogger(__name__)


def trained_cells(model: ModelBase, adata: AnnData | None) -> Indices | None:
    """Return the positions of the cells that trained, sorted; ``None`` if that is not known.

    Parameters
    ----------
    model
        The model.
    adata
        The cells. Default: the model's own. Others are recognised by name and total count.
    """
    record, cells = model._trained_cells, model.adata if adata is None else adata
    if record is None or cells is None:
        return None
    try:
        totals = as_observed(counts_of(model.setup.with_genes(cells), model.setup.layer)).totals()
    except (KeyError, ValueError):  # genes or a layer are gone, so it is other data
        return None
    found = record.within(cells.obs_names, totals)
    if found is not None:
        return found.train
    return record.trained_among(cells.obs_names, totals)


def held_out_cells(model: ModelBase, adata: AnnData | None = None) -> Indices | None:
    """Return the positions of all other cells, sorted; ``None`` if that is not known."""
    trained = trained_cells(model, adata)
    if trained is None:
        return None
    return np.setdiff1d(np.arange(model._adata(adata).n_obs), trained)


def cells_to_judge(
    model: ModelBase,
    adata: AnnData | None,
    indices: ArrayLike | None,
    condition: Indices,
    fewest: int,
) -> Indices:
    """Return the cells that verdicts and scores are of: those given, or that did not train.

    All cells, if it is not known which trained, or too few of either population did not, which is
    logged.

    Parameters
    ----------
    model, adata, indices
        The model, and the cells as the user gave them.
    condition
        Condition code of every cell.
    fewest
        Cells of each population that are needed.
    """
    every = as_indices(indices, model._adata(adata).obs_names)
    held_out = held_out_cells(model, adata) if model.is_trained else None
    if indices is not None or held_out is None:
        return every
    n_target = int((condition[held_out] != BACKGROUND).sum())
    n_background = len(held_out) - n_target
    if min(n_target, n_background) >= fewest:
        return held_out
    logger.warning(
        "Too few cells did not train to judge the model by (%d background and %d target cells; %d "
        "of each are needed). It is judged by all cells, and looks better than it is. train_size= "
        "sets how many are held out.",
        *(n_background, n_target, fewest),
    )
    return every


def held_out_or_given(
    model: ModelBase, adata: AnnData | None, indices: ArrayLike | None
) -> Indices | None:
    """Return the cells that intervals are computed for: by default those that did not train.

    Where it is not known which cells trained, or all of them did, these are all cells. That
    intervals of cells that trained are too narrow is logged, once for each model.
    """
    names = model._adata(adata).obs_names
    asked = as_indices(indices, names)
    if not model.is_trained:
        return asked
    trained = trained_cells(model, adata)
    if trained is None:
        if model._trained_cells is not None:
            _log_once(
                model,
                "It is not known which of these cells trained the model. Intervals of cells that "
                "did are too narrow: use cells that are new to the model.",
            )
        return asked
    if indices is None and len(trained) < len(names):
        return np.setdiff1d(asked, trained)
    n_seen = int(np.isin(asked, trained).sum())
    if n_seen:
        _log_once(
            model,
            f"{n_seen} of these {len(asked)} cells trained the model, so that their intervals are "
            "too narrow and their effects too large. indices=model.held_out_indices asks about "
            "cells that did not train, and model.cross_fit() answers for all cells.",
        )
    return asked


def _log_once(model: ModelBase, message: str) -> None:
    if not model._warned_of_trained_cells:
        model._warned_of_trained_cells = True
        logger.warning(message)
