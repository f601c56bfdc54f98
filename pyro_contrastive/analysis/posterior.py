"""Latents of cells under a fitted model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.runs import draw_posterior
from pyro_contrastive.cells import CellBatch

SITES = {"salient": "s", "background": "z"}


def latent_representation(query: Query, kind: str, *, give_mean: bool) -> NDArray[np.float32]:
    """Posterior mean or one posterior draw of a latent, ``[cells, latents]``.

    Parameters
    ----------
    query
        The model, the data and which cells.
    kind
        ``"salient"`` or ``"background"``.
    give_mean
        The mean, or else a draw (from torch's global random state).

    Raises
    ------
    ValueError
        If `kind` is neither of the two.
    """
    if kind not in SITES:
        msg = f"representation_kind must be one of {list(SITES)}, not {kind!r}."
        raise ValueError(msg)

    vae = query.vae
    width = vae.n_salient_latent if kind == "salient" else vae.n_background_latent
    return _per_cell(query, _value_of(query, SITES[kind], give_mean=give_mean), width)


def library_size(query: Query, *, give_mean: bool) -> NDArray[np.float32]:
    """Library size of cells on the natural scale, ``[cells, 1]``.

    Parameters
    ----------
    query
        The model, the data and which cells.
    give_mean
        The mean of the log-normal posterior, or else one draw. Observed sizes are returned
        unchanged.

    Raises
    ------
    ValueError
        If the likelihood has no library size.
    """
    likelihood = query.vae.model.likelihood
    if not likelihood.uses_library:
        msg = f"{type(likelihood).__name__} has no library size."
        raise ValueError(msg)

    value = _value_of(query, "library", give_mean=give_mean)
    if query.vae.model.library_prior is None:
        value = CellBatch.observed_library
    return _per_cell(query, value, 1)


def _value_of(query: Query, site: str, *, give_mean: bool) -> Callable[[CellBatch], Tensor]:
    """Return a function of cells: the posterior mean of a latent, or a draw of it."""
    guide = query.vae.guide
    if give_mean:
        return partial(guide.posterior_mean, site)
    program = guide.restricted_to(site)

    def drawn(batch: CellBatch) -> Tensor:
        value: Tensor = draw_posterior(query.vae, batch, guide=program).nodes[site]["value"]
        return value[0]  # the only draw

    return drawn


def _per_cell(
    query: Query, value: Callable[[CellBatch], Tensor], width: int
) -> NDArray[np.float32]:
    """Join values of mini-batches: ``[cells, width]``."""
    with evaluating(query.vae):
        batches = query.minibatches(dense=query.vae.guide.needs_dense)
        parts = [value(batch).cpu().numpy() for batch in batches]
    return np.concatenate(parts) if parts else np.empty((0, width), dtype=np.float32)
