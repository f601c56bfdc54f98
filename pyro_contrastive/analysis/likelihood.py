"""How well a fitted model describes cells: ELBO, reconstruction, importance-weighted likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_contrastive.analysis.runs import chunks, device_of, draw_posterior, run_model
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.objective import SalientOfTargets, is_local, site_losses
from pyro_contrastive.torch_tools import evaluating
from pyro_contrastive.vae import ContrastiveVAE

Array = NDArray[np.float64]
SAMPLES_PER_PASS = 50


def losses_of(
    vae: ContrastiveVAE, batch: CellBatch, n_samples: int, *, analytic: bool
) -> dict[str, Tensor]:
    """Return each site's part of the negative ELBO, ``[n_samples, cells]``, unweighted.

    Parameters shared by all cells are no cell's own: the KL divergence of one that has a prior is
    left out.
    """
    with SalientOfTargets(batch.is_target):
        posterior = draw_posterior(vae, batch, n_samples)
        model = run_model(vae, batch, posterior, n_samples)
    for trace in (posterior, model):
        trace.compute_log_prob()
    losses = site_losses(model, posterior, analytic=analytic)
    return {name: loss for name, loss in losses.items() if is_local(model.nodes[name])}


def elbo(
    vae: ContrastiveVAE, data: CellData, indices: NDArray[np.int64], batch_size: int | None
) -> Array:
    """ELBO of each cell (higher is better), one posterior draw, analytic KL where there is one."""

    def value(batch: CellBatch) -> Tensor:
        terms = losses_of(vae, batch, 1, analytic=True)
        return -torch.stack([term.expand(1, len(batch)) for term in terms.values()]).sum(0)[0]

    return _per_cell(vae, data, indices, batch_size, value)


def log_likelihood_of_reconstruction(
    vae: ContrastiveVAE, data: CellData, indices: NDArray[np.int64], batch_size: int | None
) -> Array:
    """Return log p(x | z, s, l) of each cell at one posterior draw (higher is better)."""

    def value(batch: CellBatch) -> Tensor:
        return -losses_of(vae, batch, 1, analytic=True)["x"][0]

    return _per_cell(vae, data, indices, batch_size, value)


def marginal_log_likelihood(
    vae: ContrastiveVAE,
    data: CellData,
    indices: NDArray[np.int64],
    n_samples: int,
    batch_size: int | None,
) -> Array:
    r"""Importance-weighted estimate of log p(x) of each cell (Burda et al., ICLR 2016).

    .. math:: \log \frac{1}{M} \sum_m
        \frac{p(x \mid z_m, s_m, l_m)\, p(z_m, s_m, l_m)}{q(z_m, s_m, l_m \mid x)}

    Biased downwards; the bias falls with the number of draws.
    """

    def value(batch: CellBatch) -> Tensor:
        total = torch.full((len(batch),), -math.inf, dtype=torch.float64, device=device_of(vae))
        left = n_samples
        while left:
            n = min(left, SAMPLES_PER_PASS)
            terms = losses_of(vae, batch, n, analytic=False)
            log_weights = -torch.stack([t.double().expand(n, len(batch)) for t in terms.values()])
            total = torch.logaddexp(total, log_weights.sum(0).logsumexp(0))
            left -= n
        return total - math.log(n_samples)

    if n_samples < 1:
        msg = f"n_mc_samples must be at least 1, not {n_samples}."
        raise ValueError(msg)
    # Many draws of few cells at a time: memory is draws x cells x genes.
    return _per_cell(vae, data, indices, batch_size or 64, value)


def _per_cell(
    vae: ContrastiveVAE,
    data: CellData,
    indices: NDArray[np.int64],
    batch_size: int | None,
    value: Callable[[CellBatch], Tensor],
) -> Array:
    with evaluating(vae):
        batches = chunks(vae, data, indices, batch_size)
        parts = [value(batch).double().cpu().numpy() for batch in batches]
    return np.concatenate(parts) if parts else np.empty(0)
