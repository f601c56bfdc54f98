"""Latents of cells under a fitted model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.runs import draw_posterior

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
    """
    vae = query.vae
    width = vae.n_salient_latent if kind == "salient" else vae.n_background_latent
    return _per_cell(query, SITES[kind], width, give_mean=give_mean)


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
    if query.vae.model.library_prior is None:
        parts = [batch.observed_library().cpu().numpy() for batch in query.minibatches(dense=False)]
        return _joined(parts, 1)
    return _per_cell(query, "library", 1, give_mean=give_mean)


def _per_cell(query: Query, site: str, width: int, *, give_mean: bool) -> NDArray[np.float32]:
    """Join the posterior means of `site`, or a draw from its posterior: ``[cells, width]``."""
    with evaluating(query.vae):
        values = _means(query, site) if give_mean else _draws(query, site)
        return _joined([value.cpu().numpy() for value in values], width)


def _means(query: Query, site: str) -> Iterator[Tensor]:
    guide = query.vae.guide
    if query.refined is not None:
        for _, refined in query.with_programs():
            yield refined.posterior.means(site)
        return
    for batch in query.minibatches(dense=guide.needs_dense):
        yield guide.posterior_mean(site, batch)


def _draws(query: Query, site: str) -> Iterator[Tensor]:
    guide = query.vae.guide
    # The refined posterior is that of all latents together; of the guide's only this one is needed.
    part = guide.restricted_to(site)
    for batch, program in query.with_programs(dense=guide.needs_dense):
        chosen = part if query.refined is None else program
        value: Tensor = draw_posterior(query.vae, batch, guide=chosen).nodes[site]["value"]
        yield value[0]  # the only draw


def _joined(parts: list[NDArray[np.float32]], width: int) -> NDArray[np.float32]:
    return np.concatenate(parts) if parts else np.empty((0, width), dtype=np.float32)
