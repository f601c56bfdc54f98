"""Which cells of a data set trained the model, and which did not."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive.data.counts import read_counts
from pyro_contrastive.data.indices import as_indices
from pyro_contrastive.observed.matrix import row_sums

if TYPE_CHECKING:
    from pyro_contrastive.methods.base import ModelBase

__all__ = ["held_out_cells", "held_out_or_given", "trained_cells"]

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
        totals = row_sums(read_counts(model.setup.with_genes(cells), model.setup.layer))
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
