"""How much a fitted model says in each dimension of a latent."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_contrastive.analysis.posterior import SITES
from pyro_contrastive.analysis.runs import chunks, draw_posterior, run_model
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.torch_tools import evaluating, seeded
from pyro_contrastive.vae import ContrastiveVAE

Array = NDArray[np.float64]


def latent_usage(
    vae: ContrastiveVAE,
    data: CellData,
    indices: NDArray[np.int64],
    kind: str,
    *,
    batch_size: int | None = None,
) -> tuple[Array, Array]:
    """KL divergence from the prior in each dimension, and posterior means, ``[cells, latents]``.

    Parameters
    ----------
    vae, data, indices
        The model, the data and which cells.
    kind
        ``"salient"`` or ``"background"``.
    batch_size
        Cells at a time.

    Raises
    ------
    ValueError
        If `kind` is neither, or the prior does not say something of each dimension by itself.
    """
    if kind not in SITES:
        msg = f"representation_kind must be one of {list(SITES)}, not {kind!r}."
        raise ValueError(msg)
    name = SITES[kind]
    prior_of_model = vae.model.salient_prior if kind == "salient" else vae.model.background_prior
    nats, means = [], []
    with evaluating(vae), seeded(0):  # draws are made on the way, and not looked at
        for batch in chunks(vae, data, indices, batch_size):
            posterior = draw_posterior(vae, batch)
            prior = run_model(vae, batch, posterior).nodes[name]["fn"]
            guide = posterior.nodes[name]["fn"]
            kl = _kl_by_dimension(guide, prior)
            if kl is None:
                msg = (
                    f"{type(prior_of_model).__name__} says nothing of a dimension by itself, or "
                    "has no closed-form KL divergence from the guide, so that only the sum over "
                    "dimensions is known: kl_z and kl_s in model.history. StandardNormal, "
                    "SparseSalient or PerConditionNormal tell."
                )
                raise ValueError(msg)
            nats.append(kl[0].double().cpu().numpy())
            means.append(guide.mean[0].double().cpu().numpy())
    width = vae.n_salient_latent if kind == "salient" else vae.n_background_latent
    none = np.empty((0, width))
    return np.concatenate([none, *nats]), np.concatenate([none, *means])


def _kl_by_dimension(posterior: Distribution, prior: Distribution) -> Tensor | None:
    """KL divergence of two distributions with independent dimensions, ``[..., latents]``."""
    try:
        return torch.distributions.kl_divergence(_dimensions(posterior), _dimensions(prior))
    except (NotImplementedError, AttributeError):
        return None


def _dimensions(distribution: Any) -> Distribution:
    """Return the distribution whose batch shape ends with the dimensions."""
    # Pyro wraps what a plate broadcasts or a handler masks.
    while not isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution.base_dist
