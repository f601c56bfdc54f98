"""What cells would express under another condition, by Pyro's do-operator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.analysis.decoding import Array, decode_batch, joined
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.runs import (
    device_of,
    draw_posterior,
    dtype_of,
    run_model,
    without_salient,
)
from pyro_contrastive.cells import BACKGROUND, CellBatch
from pyro_contrastive.vae import ContrastiveVAE

__all__ = [
    "Effect",
    "Intervention",
    "counterfactual_batch",
    "counterfactual_expression",
    "draw_salient",
    "effect_draws",
    "treatment_effect",
]


@dataclass(frozen=True)
class Intervention:
    """The condition that cells are set to, and where their salient latents then come from.

    Parameters
    ----------
    condition
        Its code.
    donors
        Cells that were given the condition, at least one. Each other cell takes the s of a donor,
        so that s is drawn from the aggregate posterior of the treatment. ``None``: s is drawn from
        the prior p(s | condition).
    """

    condition: int
    donors: Query | None = None


def draw_salient(donors: Query, n_samples: int, n_cells: int) -> Tensor:
    """Draw s from q(s | x) of donors chosen at random, ``[n_samples, n_cells, latents]``."""
    chosen = donors.cells[torch.randint(len(donors), (n_samples * n_cells,)).numpy()]
    vae = donors.vae
    batch = donors.data.cells(chosen, device_of(vae), dtype_of(vae))
    drawn = draw_posterior(vae, batch, guide=donors.program(batch, chosen))
    return drawn.nodes["s"]["value"].reshape(n_samples, n_cells, -1)


def counterfactual_batch(
    vae: ContrastiveVAE,
    batch: CellBatch,
    posterior: Trace,
    intervention: Intervention,
    n_samples: int,
) -> tuple[CellBatch, dict[str, Tensor]]:
    """Return the cells as if given another condition, and the salient latents they then have.

    A cell that has the condition keeps its posterior s. Under the background condition s = 0. Any
    other cell was never seen under the condition, so there is no posterior of its s: see
    :class:`Intervention`.
    """
    condition = intervention.condition
    changed = replace(batch, condition=torch.full_like(batch.condition, condition))
    observed = posterior.nodes["s"]["value"]  # [samples, cells, latents]
    if condition == BACKGROUND:
        return changed, without_salient(posterior)
    others = batch.condition != condition  # [cells]
    if not others.any():
        return changed, {"s": observed}
    s = observed.clone()
    if intervention.donors is not None:
        s[:, others] = draw_salient(intervention.donors, n_samples, int(others.sum()))
    else:
        # A site that the trace lacks is drawn from its prior, here given the new condition.
        without_s = posterior.copy()
        without_s.remove_node("s")
        prior = run_model(vae, changed, without_s, n_samples).nodes["s"]["value"]
        s[:, others] = prior[:, others]
    return changed, {"s": s}


def counterfactual_expression(query: Query, intervention: Intervention) -> Array:
    """Decode cells as if they had been given another condition.

    Returns
    -------
    ``[cells, genes]``, or ``[n_samples, cells, genes]`` if the draws are not averaged.
    """
    vae, n_samples = query.vae, query.decoding.n_samples
    result = []
    with evaluating(vae):
        for batch, guide in query.with_programs(n_samples):
            posterior = draw_posterior(vae, batch, n_samples, guide=guide)
            changed, do = counterfactual_batch(vae, batch, posterior, intervention, n_samples)
            result.append(decode_batch(query, changed, posterior, do))
    return joined(result, query)


@dataclass(frozen=True)
class Effect:
    """Treatment effect per cell and gene, log2 fold changes, each ``[cells, genes]``."""

    mean: Array
    lower: Array
    upper: Array


def effect_draws(query: Query, batch: CellBatch, posterior: Trace, pseudocount: float) -> Array:
    """log2 of expression over what it would be without s, ``[n_samples, cells, genes]``.

    Parameters
    ----------
    query
        How cells are decoded, the draws not averaged.
    batch, posterior
        Some cells, and draws of their latents.
    pseudocount
        Added to both sides.
    """
    with_s, without_s = (
        np.log2(decode_batch(query, batch, posterior, do) + pseudocount)
        for do in (None, without_salient(posterior))
    )
    return with_s - without_s


def treatment_effect(query: Query, *, interval: float, pseudocount: float) -> Effect:
    """log2 of a cell's expression over what it would be without its salient variation.

    Parameters
    ----------
    query
        The cells, and how they are decoded; whether draws are averaged has no effect.
    interval
        Posterior probability of the interval between `lower` and `upper`.
    pseudocount
        Added to both sides.
    """
    query = replace(query, decoding=replace(query.decoding, average=False))
    vae, n_samples = query.vae, query.decoding.n_samples
    parts: dict[str, list[Array]] = {"mean": [], "lower": [], "upper": []}
    tails = [(1 - interval) / 2, (1 + interval) / 2]
    with evaluating(vae):
        for batch, guide in query.with_programs(n_samples):
            posterior = draw_posterior(vae, batch, n_samples, guide=guide)
            change = effect_draws(query, batch, posterior, pseudocount)
            parts["mean"].append(change.mean(0))
            # Weibull's plotting positions: a share k/(n + 1) of the posterior lies below the k-th
            # of n draws, so that the interval has its nominal probability.
            quantiles = np.quantile(change, tails, axis=0, method="weibull")
            lower, upper = quantiles.astype(np.float32)
            parts["lower"].append(lower)
            parts["upper"].append(upper)
    return Effect(**{n: joined(values, query, average=True) for n, values in parts.items()})
