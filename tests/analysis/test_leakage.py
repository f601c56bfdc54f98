"""Probes at chance and above it; dimensions that are used and collapsed ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_gaussian import N_Z, linear_data, linear_vae, loadings, set_loadings

from pyro_contrastive import PrivateSalient
from pyro_contrastive.analysis.latent_usage import latent_usage, salient_log_likelihood
from pyro_contrastive.analysis.leakage import leakage_row, probe
from pyro_contrastive.analysis.query import Query

LABELS = np.repeat(["a", "b", "c"], 100)


@pytest.mark.parametrize("kind", ["linear", "neighbors"])
def test_independent_labels_are_predicted_at_chance(kind: str) -> None:
    latent = np.random.default_rng(1).normal(size=(300, 4))
    found = probe(latent, LABELS, kind=kind, n_permutations=10)
    assert found["chance"] == pytest.approx(1 / 3)
    assert found["balanced_accuracy"] == pytest.approx(1 / 3, abs=0.12)
    assert found["auc"] == pytest.approx(0.5, abs=0.1)
    assert found["p_value"] > 0.09
    assert (found["n_classes"], found["n_cells"]) == (3, 300)


@pytest.mark.parametrize("kind", ["linear", "neighbors"])
def test_leaked_labels_are_predicted(kind: str) -> None:
    latent = np.random.default_rng(1).normal(size=(300, 4))
    latent[:, 2] += 4 * np.repeat([0, 1, 2], 100)
    found = probe(latent, LABELS, kind=kind, n_permutations=10)
    assert found["balanced_accuracy"] > 0.9
    assert found["auc"] > 0.95
    assert found["p_value"] == pytest.approx(1 / 11)
    assert found["upper_chance"] < 0.5


def test_rare_classes_weigh_as_much_as_common_ones() -> None:
    """A probe that said "common" every time would be right in nine of ten cells."""
    labels = np.repeat(["common", "rare"], [270, 30])
    latent = np.random.default_rng(1).normal(size=(300, 3))

    def accuracy(kind):
        return probe(latent, labels, kind=kind, n_permutations=0)["balanced_accuracy"]

    for kind in ("linear", "neighbors"):
        assert accuracy(kind) == pytest.approx(0.5, abs=0.15)
    latent[270:, 0] += 2.5
    for kind in ("linear", "neighbors"):
        assert accuracy(kind) > 0.8


def test_neighbours_predict_what_no_plane_separates() -> None:
    angle = np.random.default_rng(1).uniform(0, 2 * np.pi, 400)
    radius = np.repeat([1.0, 3.0], 200)
    ring = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    labels = np.repeat(["inner", "outer"], 200)
    assert probe(ring, labels, kind="linear")["balanced_accuracy"] < 0.65
    row = leakage_row(ring, labels, n_permutations=3, seed=0)
    assert row["probe"] == "neighbors"
    assert row["excess"] > 0.9
    assert row["mixing"] < 0.5


def test_labels_that_cannot_be_probed() -> None:
    latent = np.zeros((30, 2)) + np.arange(30)[:, None]
    with pytest.raises(ValueError, match="two labels with 10 cells each"):
        probe(latent, ["x"] * 25 + ["y"] * 5)
    with pytest.raises(ValueError, match="29 labels"):
        probe(latent, ["x"] * 29)
    kept = probe(latent, ["x"] * 12 + ["y"] * 13 + ["z"] * 5)
    assert (kept["n_classes"], kept["n_cells"]) == (2, 25)


def collapsed_vae():
    """Loadings of 0 in the last dimension of z and of s: the exact posterior there is the prior."""
    vae = linear_vae()
    weights = loadings(True)
    weights[:, [N_Z - 1, N_Z + 1]] = 0.0
    set_loadings(vae, weights)
    vae.guide.weights = weights
    return vae


def test_collapsed_dimensions_are_found() -> None:
    data = linear_data(60, 60)
    torch.manual_seed(0)
    table = latent_usage(Query(collapsed_vae(), data, np.arange(120)))
    assert table.query("used")[["latent", "dimension"]].to_numpy().tolist() == [
        ["background", 0],
        ["background", 1],
        ["salient", 0],
    ]
    unused = table.query("not used")
    np.testing.assert_allclose(unused["kl"], 0.0, atol=1e-6)
    np.testing.assert_allclose(unused["signal"], 0.0, atol=1e-6)
    np.testing.assert_allclose(unused["mean_variance"], 1.0, atol=1e-6)


def test_usage_is_what_it_is_said_to_be() -> None:
    vae, data = linear_vae(), linear_data(20, 20)
    torch.manual_seed(0)
    table = latent_usage(Query(vae, data, np.arange(40))).set_index(["latent", "dimension"])
    batch = data.cells(np.arange(40), dtype=torch.float64)
    for latent, site, cells in (
        ("background", "z", slice(None)),
        ("salient", "s", batch.is_target),
    ):
        mean, variance = (moment[cells].numpy() for moment in vae.guide.encode(batch)[site])
        kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).mean(axis=0)
        rows = table.loc[latent]
        np.testing.assert_allclose(rows["kl"], kl, rtol=1e-6)
        np.testing.assert_allclose(rows["variance_of_means"], mean.var(axis=0), rtol=1e-6)
        np.testing.assert_allclose(rows["mean_variance"], variance.mean(axis=0), rtol=1e-6)
        signal = mean.var(axis=0) / (mean.var(axis=0) + variance.mean(axis=0))
        np.testing.assert_allclose(rows["signal"], signal, rtol=1e-6)


def test_dimensions_of_other_treatments_do_not_count() -> None:
    vae, data = linear_vae(), linear_data(20, 40)
    prior = PrivateSalient(3, 2).double()
    vae.model.salient_prior, vae.guide.used_salient = prior, prior.used
    codes = np.repeat([0, 1, 2], 20)
    torch.manual_seed(0)
    table = latent_usage(Query(vae, data.with_codes(codes), np.arange(60))).query(
        "latent == 'salient'"
    )
    batch = data.with_codes(codes).cells(np.arange(60), dtype=torch.float64)
    means = vae.guide.encode(batch)["s"][0].numpy()
    expected = [means[20:40, 0].var(), means[40:, 1].var()]
    np.testing.assert_allclose(table["variance_of_means"], expected, rtol=1e-6)


def test_what_is_lost_without_the_salient_latent() -> None:
    data = linear_data(5, 5)
    vae = linear_vae(width=1e-6)  # draws are the means
    lost = salient_log_likelihood(Query(vae, data, np.arange(10)), 2)
    batch = data.cells(np.arange(10), dtype=torch.float64)
    moments = vae.guide.encode(batch)
    latents = torch.cat([moments["z"][0], moments["s"][0]], -1)
    without = latents.clone()
    without[:, N_Z:] = 0.0
    noise = 0.5
    errors = [((batch.x - v @ loadings(True).T) ** 2).sum(-1) for v in (without, latents)]
    expected = ((errors[0] - errors[1]) / (2 * noise**2)).numpy()
    np.testing.assert_allclose(lost[5:], expected[5:], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(lost[:5], 0.0, atol=1e-9)
