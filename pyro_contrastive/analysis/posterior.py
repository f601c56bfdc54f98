"""Latents of cells under a fitted model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyro.poutine import Trace
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating, seeded
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

    def value(_: CellBatch, posterior: Trace) -> Tensor:
        return _value(posterior.nodes[SITES[kind]], give_mean)

    vae = query.vae
    width = vae.n_salient_latent if kind == "salient" else vae.n_background_latent
    return _per_cell(query, SITES[kind], value, width, give_mean=give_mean)


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

    def value(batch: CellBatch, posterior: Trace) -> Tensor:
        if "library" not in posterior.nodes:
            return batch.observed_library()
        return _value(posterior.nodes["library"], give_mean)

    return _per_cell(query, "library", value, 1, give_mean=give_mean)


def _per_cell(
    query: Query,
    site: str,
    value: Callable[[CellBatch, Trace], Tensor],
    width: int,
    *,
    give_mean: bool,
) -> NDArray[np.float32]:
    """Join values of mini-batches, each with a posterior draw of `site`: ``[cells, width]``."""
    vae = query.vae
    guide = vae.guide.restricted_to(site)
    # A mean needs no noise. The guide draws some all the same, which must not advance the global
    # random state: hence the seed.
    with evaluating(vae), seeded(0 if give_mean else None):
        batches = query.minibatches(dense=vae.guide.needs_dense)
        draws = ((batch, draw_posterior(vae, batch, guide=guide)) for batch in batches)
        parts = [value(batch, draw).cpu().numpy() for batch, draw in draws]
    return np.concatenate(parts) if parts else np.empty((0, width), dtype=np.float32)


def _value(site: dict[str, Any], give_mean: bool) -> Tensor:
    value: Tensor = site["fn"].mean if give_mean else site["value"]
    return value[0]  # the only draw
