"""The argument ``refine`` of the methods of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from pyro_contrastive.analysis.refined_cells import RefinedCells
from pyro_contrastive.analysis.refinement import Refinement
from pyro_contrastive.data.cell_data import CellData

if TYPE_CHECKING:
    from pyro_contrastive.methods.base import ModelBase

__all__ = ["refined_cells", "refinement_of"]


def refinement_of(refine: bool | int, model: ModelBase) -> Refinement | None:
    """Return how posteriors are to be refined; ``None``: not at all.

    Raises
    ------
    TypeError
        If it is neither a boolean nor a number of steps.
    ValueError
        If the number is below 1, or the model is not trained.
    """
    if not isinstance(refine, bool | int | np.integer | np.bool_):
        msg = f"refine must be True, False or a number of steps, not {refine!r}."  # type: ignore[unreachable]  # untyped callers
        raise TypeError(msg)
    if isinstance(refine, bool | np.bool_) and not refine:
        return None
    is_default = isinstance(refine, bool | np.bool_)
    if not is_default and refine < 1:
        msg = f"refine must be True, False or a number of steps of at least 1, not {refine}."
        raise ValueError(msg)
    if not model.is_trained:
        msg = (
            "refine= improves the posterior under the decoder as it was learned; this model has "
            "not been trained. Call train() first."
        )
        raise ValueError(msg)
    return Refinement() if is_default else Refinement(n_steps=int(refine))


def refined_cells(
    model: ModelBase,
    adata: AnnData | None,
    data: CellData,
    refine: bool | int,
    cells: NDArray[np.int64] | None = None,
) -> RefinedCells | None:
    """Return the refined posteriors of cells, to be made when they are asked for.

    Parameters
    ----------
    model, adata, data
        The model, and the cells: as given, and as they were read.
    refine
        The argument.
    cells
        Positions of the cells that will be asked about. Default: all.
    """
    settings = refinement_of(refine, model)
    if settings is None:
        return None
    stored, own = model._stored_posteriors, model.adata
    if stored is None or own is None or not (adata is None or adata is own):
        return RefinedCells(model.module, len(data), settings)
    if stored.settings != settings:
        return RefinedCells(model.module, len(data), settings)
    asked = np.arange(len(data)) if cells is None else cells
    return stored.within(model.module, own.obs_names, data, asked)
