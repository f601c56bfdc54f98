"""How well a fitted model describes cells: ELBO, reconstruction, importance-weighted likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.runs import draw_posterior, run_model
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.sites import SalientOfTargets, is_local, log_likelihood, site_losses
from pyro_contrastive.vae import ContrastiveVAE

Array = NDArray[np.float64]
SAMPLES_PER_PASS = 50
FEW_CELLS = 64
"""Cells at a time where each has many draws: memory is draws per pass x cells x genes."""


def losses_of(
    vae: ContrastiveVAE, batch: CellBatch, n_samples: int, *, analytic: bool, guide: Any = None
) -> dict[str, Tensor]:
    """Return each site's part of the negative ELBO, ``[n_samples, cells]``, unweighted.

    Parameters that all cells share belong to no cell, so that the KL divergence of those that have
    a prior is left out. Another program with the guide's sites may replace the guide.
    """
    with SalientOfTargets(batch.is_target):
        posterior = draw_posterior(vae, batch, n_samples, guide=guide)
        model = run_model(vae, batch, posterior, n_samples)
    for trace in (posterior, model):
        trace.compute_log_prob()
    losses = site_losses(model, posterior, analytic=analytic)
    return {name: loss for name, loss in losses.items() if is_local(model.nodes[name])}


def log_weights(vae: ContrastiveVAE, batch: CellBatch, n_samples: int, guide: Any = None) -> Tensor:
    r"""Log importance weights of posterior draws of each cell, ``[n_samples, cells]``, float64.

    .. math:: \log \frac{p(x \mid z, s, l)\, p(z, s, l)}{q(z, s, l \mid x)}

    without s for background cells, which have none.
    """
    terms = losses_of(vae, batch, n_samples, analytic=False, guide=guide)
    return -torch.stack([t.double().expand(n_samples, len(batch)) for t in terms.values()]).sum(0)


def log_weights_of_cells(query: Query, n_samples: int) -> Array:
    """Return the :func:`log_weights` of many cells, ``[cells, n_samples]``.

    Parameters
    ----------
    query
        The model, the data, which cells, and their posteriors if these are refined.
    n_samples
        Posterior draws per cell.

    Raises
    ------
    ValueError
        If `n_samples` is not positive.
    """
    _check_draws(n_samples)
    parts = []
    with evaluating(query.vae):
        for batch, guide in _few_at_a_time(query).with_programs():
            weights = all_log_weights(query.vae, batch, n_samples, guide)
            parts.append(weights.cpu().numpy())
    return np.concatenate(parts) if parts else np.empty((0, n_samples))


def all_log_weights(
    vae: ContrastiveVAE, batch: CellBatch, n_samples: int, guide: Any = None
) -> Tensor:
    """Return the :func:`log_weights` of a batch, a few draws at a time: ``[cells, n_samples]``."""
    starts = range(0, n_samples, SAMPLES_PER_PASS)
    passes = [
        log_weights(vae, batch, min(SAMPLES_PER_PASS, n_samples - start), guide) for start in starts
    ]
    return torch.cat(passes).T


def elbo(query: Query) -> Array:
    """ELBO of each cell (higher is better), one posterior draw, analytic KL where there is one."""

    def value(batch: CellBatch, guide: Any) -> Tensor:
        terms = losses_of(query.vae, batch, 1, analytic=True, guide=guide)
        return -torch.stack([term.expand(1, len(batch)) for term in terms.values()]).sum(0)[0]

    return _per_cell(query, value)


def log_likelihood_of_reconstruction(query: Query) -> Array:
    """Return log p(x | z, s, l) of each cell at one posterior draw (higher is better)."""

    def value(batch: CellBatch, guide: Any) -> Tensor:
        posterior = draw_posterior(query.vae, batch, guide=guide)
        return log_likelihood(run_model(query.vae, batch, posterior))[0]

    return _per_cell(query, value)


def marginal_log_likelihood(query: Query, n_samples: int) -> Array:
    r"""Importance-weighted estimate of log p(x) of each cell (Burda et al., ICLR 2016).

    .. math:: \log \frac{1}{M} \sum_m
        \frac{p(x \mid z_m, s_m, l_m)\, p(z_m, s_m, l_m)}{q(z_m, s_m, l_m \mid x)}

    Biased downwards; the bias falls with the number of draws.
    """

    def value(batch: CellBatch, guide: Any) -> Tensor:
        weights = all_log_weights(query.vae, batch, n_samples, guide)
        return weights.logsumexp(-1) - math.log(n_samples)

    _check_draws(n_samples)
    return _per_cell(_few_at_a_time(query), value)


def _few_at_a_time(query: Query) -> Query:
    """Evaluate few cells at a time by default: memory is draws per pass x cells x genes."""
    return replace(query, batch_size=query.batch_size or FEW_CELLS)


def _check_draws(n_samples: int) -> None:
    if n_samples < 1:
        msg = f"n_mc_samples must be at least 1, not {n_samples}."
        raise ValueError(msg)


def _per_cell(query: Query, value: Callable[[CellBatch, Any], Tensor]) -> Array:
    with evaluating(query.vae):
        parts = [value(*pair).double().cpu().numpy() for pair in query.with_programs()]
    return np.concatenate(parts) if parts else np.empty(0)
