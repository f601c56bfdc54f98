"""Clusters of the background latent are the cell types, also if these vary continuously."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from pyro_contrastive.analysis.means.clusters import CELLS_PER_CLUSTER, MOST_FITTED, clusters


def elongated(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four types that differ in two latents, and vary along a third one far more than in others."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    z = rng.normal(size=(n, 5)) * [0.3, 0.3, 1.5, 0.3, 0.3]
    z[:, 0] += 3 * (kind % 2)
    z[:, 1] += 3 * (kind // 2)
    return z.astype(np.float32), kind


@pytest.mark.parametrize("n", [2_000, MOST_FITTED + 5_000])
def test_types_are_found_although_they_vary_along_a_path(n):
    z, kind = elongated(n)
    assert normalized_mutual_info_score(kind, clusters(z, 4)) > 0.97
    by_k_means = KMeans(4, n_init=5, random_state=0).fit_predict(z)
    assert normalized_mutual_info_score(kind, by_k_means) < 0.8


def test_the_units_of_the_latent_do_not_matter():
    z, _ = elongated(600)
    found = clusters(z, 4)
    for factor in (1e-4, 1e4):
        assert normalized_mutual_info_score(found, clusters(factor * z, 4)) > 0.99


def test_the_same_seed_gives_the_same_clusters():
    z = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    assert np.array_equal(clusters(z, 6, seed=1), clusters(z, 6, seed=1))


def test_few_cells_have_few_clusters_and_a_collapsed_latent_has_one():
    z, _ = elongated(2 * CELLS_PER_CLUSTER + 10)
    assert len(set(clusters(z, 8))) == 2
    assert not clusters(z[:10], 8).any()
    assert not clusters(np.zeros((500, 3), dtype=np.float32), 8).any()
    assert clusters(z[:0], 8).shape == (0,)


def test_latents_that_do_not_vary_do_no_harm():
    z, kind = elongated(600)
    z[:, 3:] = 0
    assert normalized_mutual_info_score(kind, clusters(z, 4)) > 0.97
