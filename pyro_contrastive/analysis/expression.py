"""Normalised and counterfactual expression: the decoder's output under the posterior."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.poutine import Trace
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.analysis.runs import (
    chunks,
    device_of,
    draw_posterior,
    dtype_of,
    run_model,
    value_at,
)
from pyro_contrastive.cells import BACKGROUND, CellBatch
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.vae import ContrastiveVAE

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Decoding:
    """What to decode.

    Parameters
    ----------
    site
        ``"scale"`` (normalised expression) or ``"rate"`` (times the library size).
    genes
        Indices of the genes; default all.
    n_samples
        Posterior draws per cell.
    average
        Average over the draws; else keep them as a leading axis.
    batches
        Batch codes to decode under, averaged over; empty: each cell's own.
    categorical, continuous
        Covariates to decode under: code or value by column; others are each cell's own.
    batch_size
        Cells at a time.
    """

    site: str = "scale"
    genes: NDArray[np.int64] | slice = field(default_factory=lambda: slice(None))
    n_samples: int = 1
    average: bool = True
    batches: Sequence[int] = ()
    categorical: Mapping[int, int] = field(default_factory=dict)
    continuous: Mapping[int, float] = field(default_factory=dict)
    batch_size: int | None = None


def expression(
    vae: ContrastiveVAE,
    data: CellData,
    indices: NDArray[np.int64],
    decoding: Decoding,
    *,
    salient: Sequence[bool] = (True,),
) -> list[Array]:
    """Decode cells, with their salient latent or without it, from the same posterior draws.

    A background cell has no salient latent, so both are the same for it.

    Parameters
    ----------
    vae, data, indices
        The model, the data and which cells.
    decoding
        What to decode.
    salient
        For each result: keep the salient latent, or set it to 0 (Pyro's ``do``).

    Returns
    -------
    An array per entry of `salient`: ``[cells, genes]``, or ``[n_samples, cells, genes]`` if the
    draws are not averaged.

    Raises
    ------
    ValueError
        If the likelihood has no scale head: there is no normalised expression then.
    """
    results: list[list[Array]] = [[] for _ in salient]
    with evaluating(vae):
        for batch in _chunks(vae, data, indices, decoding):
            posterior = draw_posterior(vae, batch, decoding.n_samples)
            for result, keep in zip(results, salient, strict=True):
                do = None if keep else {"s": torch.zeros_like(posterior.nodes["s"]["value"])}
                result.append(decode(vae, batch, posterior, decoding, do))
    axis = 0 if decoding.average else 1
    return [np.concatenate(result, axis=axis) for result in results]


def _chunks(
    vae: ContrastiveVAE, data: CellData, indices: NDArray[np.int64], decoding: Decoding
) -> Iterator[CellBatch]:
    return chunks(vae, data, indices, decoding.batch_size, decoding.n_samples)


def decode(
    vae: ContrastiveVAE,
    batch: CellBatch,
    posterior: Trace,
    decoding: Decoding,
    do: dict[str, Tensor] | None = None,
) -> Array:
    """Decode posterior draws of one batch of cells, averaged over the batches asked for."""
    total: Tensor = torch.zeros(())  # one batch at a time: memory does not grow with their number
    codes = decoding.batches or (None,)
    for code in codes:
        decoded = decoded_under(batch, decoding, code)
        value = value_at(decoding.site, vae, decoded, posterior, decoding.n_samples, do)
        if value is None:
            msg = (
                f"{type(vae.model.likelihood).__name__} has no {decoding.site!r}: normalised "
                "expression has no meaning for this likelihood. One of your own can say what it "
                "is: override Likelihood.expression."
            )
            raise ValueError(msg)
        value = value[..., decoding.genes]
        total = total + (value.mean(0) if decoding.average else value)
    return (total / len(codes)).cpu().numpy()


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


@dataclass(frozen=True)
class Donors:
    """Cells whose salient latents stand for those of a treatment: its aggregate posterior.

    Parameters
    ----------
    data, indices
        The data they are in, and which cells they are; at least one.
    """

    data: CellData
    indices: NDArray[np.int64]

    def draw(self, vae: ContrastiveVAE, n_samples: int, n_cells: int) -> Tensor:
        """Draw s from q(s | x) of a donor chosen at random, ``[n_samples, n_cells, latents]``."""
        chosen = torch.randint(len(self.indices), (n_samples * n_cells,)).numpy()
        batch = self.data.cells(self.indices[chosen], device_of(vae), dtype_of(vae))
        return draw_posterior(vae, batch).nodes["s"]["value"].reshape(n_samples, n_cells, -1)


def counterfactual_batch(
    vae: ContrastiveVAE,
    batch: CellBatch,
    posterior: Trace,
    condition: int,
    n_samples: int,
    donors: Donors | None = None,
) -> tuple[CellBatch, dict[str, Tensor]]:
    """Return the cells as if given `condition`, and the salient latents they then have.

    A cell that has the condition keeps its posterior s; under the background condition s = 0. Any
    other cell was never seen under the condition: each of its draws takes the s of a donor, or,
    without donors, is from the prior p(s | condition).
    """
    changed = replace(batch, condition=torch.full_like(batch.condition, condition))
    observed = posterior.nodes["s"]["value"]  # [samples, cells, latents]
    if condition == BACKGROUND:
        return changed, {"s": torch.zeros_like(observed)}
    others = batch.condition != condition  # [cells]
    if not others.any():
        return changed, {"s": observed}
    s = observed.clone()
    if donors is not None:
        s[:, others] = donors.draw(vae, n_samples, int(others.sum()))
    else:
        without_s = posterior.copy()
        without_s.remove_node("s")
        prior = run_model(vae, changed, without_s, n_samples).nodes["s"]["value"]
        s[:, others] = prior[:, others]
    return changed, {"s": s}


def counterfactual_expression(
    vae: ContrastiveVAE,
    data: CellData,
    indices: NDArray[np.int64],
    condition: int,
    decoding: Decoding,
    donors: Donors | None = None,
) -> Array:
    """Decode cells as if they had been given another condition.

    Parameters
    ----------
    vae, data, indices
        The model, the data and which cells.
    condition, donors
        Condition code, and whose salient latents stand for it: see :func:`counterfactual_batch`.
    decoding
        What to decode.

    Returns
    -------
    ``[cells, genes]``, or ``[n_samples, cells, genes]`` if the draws are not averaged.
    """
    result = []
    with evaluating(vae):
        for batch in _chunks(vae, data, indices, decoding):
            posterior = draw_posterior(vae, batch, decoding.n_samples)
            changed, do = counterfactual_batch(
                vae, batch, posterior, condition, decoding.n_samples, donors
            )
            result.append(decode(vae, changed, posterior, decoding, do))
    return np.concatenate(result, axis=0 if decoding.average else 1)


@dataclass(frozen=True)
class Effect:
    """Treatment effect per cell and gene, log2 fold changes, each ``[cells, genes]``."""

    mean: Array
    lower: Array
    upper: Array


def treatment_effect(
    vae: ContrastiveVAE,
    data: CellData,
    indices: NDArray[np.int64],
    decoding: Decoding,
    *,
    interval: float,
    pseudocount: float,
) -> Effect:
    """log2 of a cell's expression over what it would be without its salient variation.

    Parameters
    ----------
    vae, data, indices
        The model, the data and which cells.
    decoding
        Genes, number of posterior draws, batches.
    interval
        Posterior probability of the interval between `lower` and `upper`.
    pseudocount
        Added to both sides.
    """
    decoding = replace(decoding, average=False)
    parts: dict[str, list[Array]] = {"mean": [], "lower": [], "upper": []}
    tails = [(1 - interval) / 2, (1 + interval) / 2]
    with evaluating(vae):
        for batch in _chunks(vae, data, indices, decoding):
            posterior = draw_posterior(vae, batch, decoding.n_samples)
            without = {"s": torch.zeros_like(posterior.nodes["s"]["value"])}
            given, taken = (
                np.log2(decode(vae, batch, posterior, decoding, do) + pseudocount)
                for do in (None, without)
            )
            change = given - taken  # [samples, cells, genes]
            parts["mean"].append(change.mean(0))
            # Of n draws, k/(n + 1) lie below the k-th: the interval covers what it says.
            quantiles = np.quantile(change, tails, axis=0, method="weibull")
            lower, upper = quantiles.astype(np.float32)
            parts["lower"].append(lower)
            parts["upper"].append(upper)
    return Effect(**{name: np.concatenate(values) for name, values in parts.items()})
