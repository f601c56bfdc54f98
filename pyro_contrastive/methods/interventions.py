"""Cells set to a condition that they were not given, and where their salient latents come from."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import ArrayLike

from pyro_contrastive._tools.torch_tools import evaluating, seeded
from pyro_contrastive.analysis.counterfactuals import Intervention
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.cells import BACKGROUND, CellBatch
from pyro_contrastive.methods.base import NO_CELLS, Level, ModelBase
from pyro_contrastive.methods.refined import refined_cells

SalientSource = Literal["aggregate_posterior", "prior"]


def query_under(
    model: ModelBase,
    condition: Level,
    adata: AnnData | None,
    indices: ArrayLike | None,
    batch_size: int | None,
    salient_source: SalientSource,
    *,
    refine: bool | int,
) -> tuple[Query, Intervention]:
    """Return a question about cells, and the intervention that gives them a condition."""
    code = model._condition_code(condition)
    # Under the background condition every cell has s = 0, whatever condition it was given.
    needed = code != BACKGROUND
    query = model._query(adata, indices, batch_size, need_condition=needed, refine=refine)
    donors = None
    if code != BACKGROUND and salient_source == "prior":
        _warn_if_treatments_are_alike(model, code)
    elif code != BACKGROUND and query.data.condition is not None:
        donors = _donors(model, code, condition, model._adata(adata), refine)
    return query, Intervention(code, donors)


def _donors(
    model: ModelBase, code: int, condition: Level, given: AnnData, refine: bool | int
) -> Query:
    """Return the cells of a treatment that trained, of the model's own data if it has any."""
    adata = given if model.adata is None else model.adata
    data = model._extract(adata)
    codes = model._condition_codes(adata, data)
    found = NO_CELLS if codes is None else np.flatnonzero(codes == code)
    if model._trained_cells is not None:
        trained = model._trained_cells.within(adata.obs_names, data.totals())
        found = found if trained is None else np.intersect1d(found, trained.train)
    if not found.size:
        msg = (
            f"There are no cells of {condition!r} to take salient latents from: give the model "
            "its data (model.adata, or load(..., adata=)), or use salient_source='prior'."
        )
        raise ValueError(msg)
    assert codes is not None  # or no cells would have been found
    data = data.with_codes(np.maximum(codes, BACKGROUND))  # only donors are asked about
    refined = refined_cells(model, adata, data, refine, found)
    return Query(model.module, data, found, refined=refined)


def _warn_if_treatments_are_alike(model: ModelBase, code: int) -> None:
    n_conditions = len(model.setup.conditions)
    if code == BACKGROUND or n_conditions <= 2:  # noqa: PLR2004  # one treatment
        return
    other = next(c for c in range(1, n_conditions) if c != code)
    draws = []
    for c in (code, other):
        cells = CellBatch(condition=torch.tensor([c], device=model.device))
        with evaluating(model.module), seeded(0):
            draws.append(model.module.model.s_dist(cells).sample())
    if torch.equal(*draws):
        msg = (
            "The salient prior is the same for every treatment: cells that were not given this "
            "one are decoded with a salient latent of any treatment. Use a salient_prior that "
            "depends on the condition, such as PerConditionNormal."
        )
        warnings.warn(msg, UserWarning, stacklevel=4)
