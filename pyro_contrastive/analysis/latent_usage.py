"""Which dimensions of the latents are used, and what the salient one adds to the likelihood."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.runs import draw_posterior, run_model, without_salient
from pyro_contrastive.model import SALIENT
from pyro_contrastive.sites import log_likelihood

__all__ = ["SIGNAL", "latent_usage", "salient_log_likelihood"]

SIGNAL = 0.1
"""A dimension is called used if at least this share of its variance lies between cells.

The share is the variance of the posterior means over that of posterior draws. In a collapsed
dimension, whose posterior is its prior for every cell, it is 0 in theory and up to a few hundredths
in practice, since an encoder never suppresses all noise; in a used one it is a half or more. (Burda
et al., ICLR 2016, call a dimension active when the variance of its means exceeds 0.01, which
trained encoders reach in collapsed dimensions too.)
"""
KL_DRAWS = 10


def latent_usage(query: Query) -> pd.DataFrame:
    """Measure how much each dimension of z and s says about a cell; call with a fixed seed.

    Parameters
    ----------
    query
        The model, the data and which cells. For s, the target cells among them, and for each
        dimension of s the cells that have it.

    Returns
    -------
    See :meth:`pyro_contrastive.ContrastiveVI.latent_signal`.
    """
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"z": [], SALIENT: []}
    vae = query.vae
    with evaluating(vae):
        for batch in query.minibatches(KL_DRAWS):
            posterior = draw_posterior(vae, batch, KL_DRAWS)
            model = run_model(vae, batch, posterior, KL_DRAWS)
            marginals = vae.guide.marginals(batch)
            for site, found in parts.items():
                q, draws = vae.guide.factor(site, *marginals[site]), posterior.nodes[site]["value"]
                kl = _kl_by_dimension(q, draws, model.nodes[site]["fn"])
                mean, variance = (moment.expand_as(draws)[0] for moment in (q.mean, q.variance))
                if site == SALIENT:
                    used = vae.model.salient_prior.used(batch)
                    there = batch.is_target.unsqueeze(-1).expand_as(mean)
                    there = there if used is None else there & used
                    mean, variance, kl = (
                        torch.where(there, value, torch.nan) for value in (mean, variance, kl)
                    )
                found.append((mean, variance, kl))
    tables = [
        _table(site, *(torch.cat(part).double().cpu().numpy() for part in zip(*found, strict=True)))
        for site, found in parts.items()
        if found
    ]
    return pd.concat(tables, ignore_index=True)


def _kl_by_dimension(marginal: Any, draws: Tensor, prior: Any) -> Tensor:
    """KL divergence of every dimension, ``[cells, latents]``; NaN if the prior does not factor.

    Parameters
    ----------
    marginal
        Independent posterior of every dimension. If the guide has none in closed form, the normal
        or log-normal one with its moments.
    draws
        Draws of the latent, ``[draws, cells, latents]``.
    prior
        The prior.
    """
    posterior, prior = _dimensions(marginal), _dimensions(prior)
    if posterior is None or prior is None:
        return torch.full_like(draws[0], torch.nan)
    try:
        kl = kl_divergence(posterior, prior).expand_as(draws)
    except NotImplementedError:  # no closed form for this pair: the mean over draws
        kl = posterior.log_prob(draws) - prior.log_prob(draws)
    return kl.mean(0)


def _dimensions(distribution: Any) -> Distribution | None:
    """Return the distribution of single dimensions, if they are independent."""
    # Pyro wraps a distribution that a plate broadcasts or a handler masks.
    while not isinstance(distribution, Independent):
        if not hasattr(distribution, "base_dist"):
            return None
        distribution = distribution.base_dist
    return distribution.base_dist


def _table(
    site: str,
    means: NDArray[np.float64],
    variances: NDArray[np.float64],
    kl: NDArray[np.float64],
) -> pd.DataFrame:
    """One row per dimension, from values ``[cells, latents]`` with NaN where a cell has none."""
    rows = []
    for k in range(means.shape[1]):
        there = np.isfinite(means[:, k])
        if not there.any():
            continue
        between, within = float(means[there, k].var()), float(variances[there, k].mean())
        rows.append(
            {
                "latent": "background" if site == "z" else "salient",
                "dimension": k,
                "kl": float(kl[there, k].mean()),
                "variance_of_means": between,
                "mean_variance": within,
                "signal": between / (between + within),
            }
        )
    table = pd.DataFrame(rows)
    return table.assign(used=table["signal"] >= SIGNAL) if rows else table


def salient_log_likelihood(query: Query, n_samples: int = 10) -> NDArray[np.float64]:
    """Nats of log p(x | z, s, l) that each cell loses if its s is set to 0; fix the seed.

    Parameters
    ----------
    query
        The model, the data and which target cells (background cells lose nothing).
    n_samples
        Posterior draws to average over.

    Returns
    -------
    ``[cells]``. About 0 where the decoder ignores s.
    """
    vae, parts = query.vae, []
    with evaluating(vae):
        for batch in query.minibatches(n_samples):
            posterior = draw_posterior(vae, batch, n_samples)
            values = [
                log_likelihood(run_model(vae, batch, posterior, n_samples, do))
                for do in (None, without_salient(posterior))
            ]
            parts.append((values[0] - values[1]).double().mean(0).cpu().numpy())
    return np.concatenate(parts) if parts else np.empty(0)
