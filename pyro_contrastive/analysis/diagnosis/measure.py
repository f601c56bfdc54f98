"""The measurements that a diagnosis is based on, made on a sample of the cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from pyro_contrastive._tools.torch_tools import evaluating, seeded
from pyro_contrastive.analysis.comparison import estimate
from pyro_contrastive.analysis.diagnosis.measurements import (
    Closeness,
    GenesFound,
    Measurements,
    Structure,
)
from pyro_contrastive.analysis.latent_usage import latent_usage, salient_log_likelihood
from pyro_contrastive.analysis.leakage import MIN_PER_CLASS, leakage_row
from pyro_contrastive.analysis.likelihood import log_weights_of_cells
from pyro_contrastive.analysis.posterior import latent_representation
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.guide import ContrastiveGuide

__all__ = ["balanced_sample", "measure", "salient_structure"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

N_DRAWS = 400
"""Draws per cell for k. Its tail, which is fitted, has 60 of them."""
N_COMPONENTS = 20
MAX_GROUPS = 5
REFERENCES = 5


def balanced_sample(condition: NDArray[np.int64], among: Indices, n: int, seed: int) -> Indices:
    """Choose up to `n` cells, half of them background cells; sorted.

    Raises
    ------
    ValueError
        If either population has fewer than ten cells, too few for a diagnosis.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for name, cells in (
        ("background", among[condition[among] == BACKGROUND]),
        ("target", among[condition[among] != BACKGROUND]),
    ):
        if len(cells) < MIN_PER_CLASS:
            msg = (
                f"There are {len(cells)} {name} cells; a diagnosis needs at least "
                f"{MIN_PER_CLASS} of each population."
            )
            raise ValueError(msg)
        parts.append(rng.choice(cells, min(len(cells), n // 2), replace=False))
    return np.sort(np.concatenate(parts))


def measure(
    query: Query,
    *,
    shared: Mapping[str, NDArray[Any]],
    batch: Mapping[str, NDArray[Any]],
    elbo: pd.Series,
    restored_epoch: int | None,
    genes: GenesFound | None,
    n_k_cells: int,
    n_permutations: int,
    seed: int,
) -> Measurements:
    """Measure everything that :mod:`~pyro_contrastive.analysis.diagnosis.findings` reads.

    Parameters
    ----------
    query
        The model, the data, and a sample of the cells with both populations. With refined
        posteriors, these are compared with the guide's; the rest is about the guide's.
    shared
        Labels that both conditions share, of these cells, by name; batches among them.
    batch
        Names of the labels that z should not hold either.
    elbo, restored_epoch
        Negative ELBO by epoch, and the epoch whose weights were put back.
    genes
        What the test of means finds, of more cells than these.
    n_k_cells
        Number of cells for which k is computed.
    n_permutations
        Shuffles of each probe.
    seed
        Seed of everything drawn.
    """
    of_refined, query = query, replace(query, refined=None)
    assert query.data.condition is not None
    codes = query.data.condition[query.cells]
    is_target = codes != BACKGROUND
    targets = query.of(query.cells[is_target])
    with seeded(seed):
        usage = latent_usage(query)
        nats = salient_log_likelihood(targets)
        z, s = (
            latent_representation(query, kind, give_mean=False).astype(float)
            for kind in ("background", "salient")
        )
        some = np.random.default_rng(seed).permutation(query.cells)[:n_k_cells]
        guide = _closeness(query.of(some))
        refined = None if of_refined.refined is None else _closeness(of_refined.of(some))

    def probed(latent: Array, labels: NDArray[Any]) -> dict[str, float | str]:
        return leakage_row(latent, labels, n_permutations=n_permutations, seed=seed)

    means = latent_representation(targets, "salient", give_mean=True).astype(float)
    used = usage.query("latent == 'salient' and used")["dimension"].to_numpy()
    return Measurements(
        usage=usage,
        salient_nats=float(nats.mean()),
        salient_nats_se=float(nats.std(ddof=1) / np.sqrt(len(nats))),
        condition_in_x=probed(_encoder_components(query, seed), is_target),
        condition_in_z=probed(z, is_target),
        condition_in_s=probed(s, is_target),
        structure=salient_structure(means[:, used], seed) if len(used) else None,
        guide=guide,
        refined=refined,
        n_draws=N_DRAWS,
        shared_in_s={n: probed(s[is_target], v[is_target]) for n, v in _several(shared, is_target)},
        batch_in_z={n: probed(z, v) for n, v in _several(batch, np.ones_like(is_target))},
        treatments_in_s=_treatments(s[is_target], codes[is_target], probed),
        elbo=elbo,
        restored_epoch=restored_epoch,
        # Some penalties can act on either latent. The advice is about those on z.
        penalties={
            type(penalty).__name__: penalty.weight
            for penalty in query.vae.penalties
            if penalty.weight and getattr(penalty, "site", "z") == "z"
        },
        salient_prior=type(query.vae.model.salient_prior).__name__,
        genes=genes,
    )


def _closeness(query: Query) -> Closeness:
    weights = log_weights_of_cells(query, N_DRAWS)
    found = estimate(weights)
    return Closeness(found.k, float(weights.mean()), float(found.iw.mean()))


def _treatments(s: Array, codes: NDArray[np.int64], probed: Any) -> dict[str, float | str] | None:
    sizes = np.bincount(codes)
    return probed(s, codes) if (sizes >= MIN_PER_CLASS).sum() > 1 else None


def _several(
    labels: Mapping[str, NDArray[Any]], among: NDArray[np.bool_]
) -> list[tuple[str, NDArray[Any]]]:
    """Labels with at least two classes that are large enough among these cells."""
    return [
        (name, values)
        for name, values in labels.items()
        if (pd.Series(values[among]).value_counts() >= MIN_PER_CLASS).sum() > 1
    ]


def _encoder_components(query: Query, seed: int) -> Array:
    """Principal components of the encoders' input, ``[cells, components]``."""
    see: Any = torch.log1p
    if isinstance(query.vae.guide, ContrastiveGuide):
        see = query.vae.guide.encoder_input
    with evaluating(query.vae):
        parts = [see(batch.x).cpu().numpy() for batch in query.minibatches()]
    x = np.concatenate(parts).astype(float)
    n = min(N_COMPONENTS, *x.shape)
    return np.asarray(PCA(n, random_state=seed).fit_transform(x))


def salient_structure(means: Array, seed: int) -> Structure:
    """Look for groups of cells that a single normal cloud of the same shape would not have.

    Parameters
    ----------
    means
        Posterior means of the dimensions in use, ``[cells, latents]``.
    seed
        Seed of k-means and of the reference.
    """
    rng = np.random.default_rng(seed)
    best, n_groups = _best_silhouette(means, seed)
    covariance = np.atleast_2d(np.cov(means, rowvar=False))
    clouds = rng.multivariate_normal(means.mean(0), covariance, (REFERENCES, len(means)))
    reference = [_best_silhouette(cloud, seed)[0] for cloud in clouds]
    return Structure(best - float(np.mean(reference)), n_groups)


def _best_silhouette(values: Array, seed: int) -> tuple[float, int]:
    scores = {}
    for n_groups in range(2, min(MAX_GROUPS, len(values) - 1) + 1):
        groups = KMeans(n_groups, n_init=3, random_state=seed).fit_predict(values)
        scores[n_groups] = float(silhouette_score(values, groups))
    n_best = max(scores, key=lambda n: scores[n])
    return scores[n_best], n_best
