"""Normalised expression: the decoder's output at draws from the posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.poutine import Trace
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating, seeded
from pyro_contrastive.analysis.query import Decoding, Query
from pyro_contrastive.analysis.runs import draw_posterior, value_at, without_salient
from pyro_contrastive.cells import CellBatch

__all__ = ["decode_batch", "decode_cells", "decoded_under", "has_expression", "joined"]

Array = NDArray[np.float32]


def decode_cells(query: Query, *, salient: Sequence[bool] = (True,)) -> list[Array]:
    """Decode cells, with their salient latent or without it, from the same posterior draws.

    A background cell has no salient latent, so both are the same for it.

    Parameters
    ----------
    query
        The cells, and how they are decoded.
    salient
        For each result: keep the salient latent, or set it to 0 (Pyro's ``do``).

    Returns
    -------
    An array per entry of `salient`: ``[cells, genes]``, or ``[n_samples, cells, genes]`` if the
    draws are not averaged.

    Raises
    ------
    ValueError
        If the likelihood has no scale head, and so no normalised expression.
    """
    n_samples = query.decoding.n_samples
    results: list[list[Array]] = [[] for _ in salient]
    with evaluating(query.vae):
        for batch, guide in query.with_programs(n_samples):
            posterior = draw_posterior(query.vae, batch, n_samples, guide=guide)
            for result, keep in zip(results, salient, strict=True):
                do = None if keep else without_salient(posterior)
                result.append(decode_batch(query, batch, posterior, do))
    return [joined(result, query) for result in results]


def joined(parts: Sequence[Array], query: Query, *, average: bool | None = None) -> Array:
    """Join the mini-batches of decoded cells; if there are no cells, return an array of none.

    Parameters
    ----------
    parts
        Mini-batches, ``[cells, genes]`` or ``[n_samples, cells, genes]``.
    query
        The cells, and how they were decoded.
    average
        Whether the first axis is that of cells. Default: as the query says.
    """
    decoding = query.decoding
    is_average = decoding.average if average is None else average
    if parts:
        return np.concatenate(parts, axis=0 if is_average else 1)
    shape = (0, len(query.genes)) if is_average else (decoding.n_samples, 0, len(query.genes))
    return np.empty(shape, dtype=np.float32)


def decode_batch(
    query: Query,
    batch: CellBatch,
    posterior: Trace,
    do: dict[str, Tensor] | None = None,
) -> Array:
    """Decode posterior draws of one mini-batch, averaged over the experimental batches asked for.

    Parameters
    ----------
    query
        Settings of decoding.
    batch
        The cells; their condition may be a counterfactual one.
    posterior
        Draws of their latents.
    do
        Sites to set to a value, whatever the posterior says.
    """
    decoding = query.decoding
    total: Tensor = torch.zeros(())  # summed one by one: memory does not grow with their number
    codes = decoding.batches or (None,)
    for code in codes:
        decoded = decoded_under(batch, decoding, code)
        value = value_at(decoding.site, query.vae, decoded, posterior, decoding.n_samples, do)
        if value is None:
            override = "mean_scale" if decoding.site.startswith("mean") else "expression"
            msg = (
                f"{type(query.vae.model.likelihood).__name__} has no {decoding.site!r}: normalised "
                "expression has no meaning for this likelihood. One of your own can say what it "
                f"is: override Likelihood.{override}."
            )
            raise ValueError(msg)
        value = value[..., decoding.genes]
        total = total + (value.mean(0) if decoding.average else value)
    return (total / len(codes)).cpu().numpy()


def has_expression(query: Query) -> bool:
    """Tell whether the likelihood has expression and a mean, by decoding the first cell."""
    with seeded(0), evaluating(query.vae):
        batch = next(query.of(query.cells[:1]).minibatches())
        posterior = draw_posterior(query.vae, batch)
        found = (value_at(site, query.vae, batch, posterior) for site in ("scale", "mean_scale"))
        return all(value is not None for value in found)


def decoded_under(batch: CellBatch, decoding: Decoding, code: int | None) -> CellBatch:
    """Return the cells with the covariates of `decoding`, and this batch code if there is one."""
    changed = replace(
        batch,
        categorical=_with_columns(batch.categorical, decoding.categorical),
        continuous=_with_columns(batch.continuous, decoding.continuous),
    )
    if code is None:
        return changed
    return replace(changed, batch=torch.full_like(batch.batch_codes, code))


def _with_columns(values: Tensor | None, columns: Mapping[int, float]) -> Tensor | None:
    """Set some columns of ``[cells, covariates]`` to one value each."""
    if values is None or not columns:
        return values
    values = values.clone()
    for column, value in columns.items():
        values[:, column] = value
    return values
