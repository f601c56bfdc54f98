"""What is said of a latent is its marginal posterior, whatever it depends on."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from every_guide import MADE, OURS
from helpers import make_batch, make_vae
from small_model import make, small_adata
from torch import nn

from pyro_contrastive import MMD, ConditionalGuide, NarrowSalient, Wasserstein
from pyro_contrastive.analysis.runs import draw_posterior

N = 20_000
CLOSED = {"mean-field", "full", "low-rank"}


@pytest.fixture
def gamma() -> dict[str, dist.Distribution]:
    return {"background_prior": dist.Gamma(1.0, 1.0), "salient_prior": dist.Gamma(1.0, 1.0)}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("positive", [False, True])
def test_marginals_and_means_are_those_of_many_draws(name, positive, gamma) -> None:
    torch.manual_seed(0)
    vae = make_vae(guide=MADE[name](), latent_library=True, **(gamma if positive else {})).eval()
    guide = vae.guide
    for other in (n for n, _ in guide.named_parameters() if n.startswith(("correl", "flows"))):
        nn.init.normal_(guide.get_parameter(other), std=0.1 if positive else 0.3)
    batch = make_batch(3, 4)
    state = torch.get_rng_state()
    with torch.no_grad():
        marginals = guide.marginals(batch)
        means = {site: guide.posterior_mean(site, batch) for site in marginals}
        only = guide.marginals(batch, "s")
        assert torch.equal(state, torch.get_rng_state())
        draws = draw_posterior(vae, batch, N).nodes
    assert list(marginals) == ["z", "s", "library"]
    assert list(only) == ["s"]
    torch.testing.assert_close(only["s"], marginals["s"])
    n_behind = N if name in CLOSED else 200  # draws behind what is stated
    for site, (mean, variance) in marginals.items():
        value = draws[site]["value"].double()
        assert mean.shape == variance.shape == means[site].shape == value.shape[1:]
        error = 6 * value.std(0) * (1 / N + 1 / n_behind) ** 0.5
        assert ((value.mean(0) - means[site]).abs() < error).all()
        real = value.log() if positive or site == "library" else value
        error = 6 * real.std(0) * (1 / N + 1 / n_behind) ** 0.5
        assert ((real.mean(0) - mean).abs() < error).all()
        torch.testing.assert_close(real.var(0), variance.double(), rtol=12 * n_behind**-0.5, atol=0)


def test_a_conditional_guide_is_not_taken_at_one_draw_of_z() -> None:
    """s = slope z exactly: its marginal variance is that of z, its conditional one about 0."""
    torch.manual_seed(0)
    vae = make_vae(guide=ConditionalGuide(), n_background_latent=2).eval()
    encoder = vae.guide.s_encoder

    def given(product, covariates):
        z = covariates[..., -2:]
        return 3.0 * z, torch.full_like(z, 1e-6)

    encoder.of_product = given
    batch = make_batch(0, 4)
    with torch.no_grad():
        found = vae.guide.marginals(batch)
    torch.testing.assert_close(found["s"][1], 9 * found["z"][1], rtol=0.5, atol=0)
    torch.testing.assert_close(found["s"][0], 3 * found["z"][0], rtol=0, atol=1.0)


@pytest.mark.parametrize("name", OURS)
def test_latents_of_a_model_are_those_marginals(name) -> None:
    torch.manual_seed(0)
    model = make(small_adata(), guide=OURS[name](), use_observed_lib_size=False)
    batch = model._data(None).cells(np.arange(26))
    with torch.no_grad():
        guide = model.module.guide
        expected = [guide.posterior_mean(site, batch) for site in ("z", "s", "library")]
    found = [
        model.get_latent_representation(representation_kind="background"),
        model.get_latent_representation(),
        model.get_latent_library_size(),
    ]
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
    table = model.latent_signal(seed=0)
    z = table[table["latent"] == "background"]
    with torch.no_grad():
        mean, variance = guide.marginals(batch)["z"]
    np.testing.assert_allclose(z["variance_of_means"], mean.var(0, correction=0), rtol=1e-4)
    np.testing.assert_allclose(z["mean_variance"], variance.mean(0), rtol=1e-4)


@pytest.mark.parametrize("name", MADE)
def test_the_pin_of_background_cells_is_the_mean_square_of_their_s(name) -> None:
    """Wasserstein's W = E |s|^2: with s given z, or without closed form, on average over draws."""
    torch.manual_seed(0)
    vae, batch = make_vae(guide=MADE[name]()).eval(), make_batch(4, 3)
    with torch.no_grad():
        trace = draw_posterior(vae, batch, N)
        found = Wasserstein.per_cell(trace).expand(N, 7).double()
    squares = trace.nodes["s"]["value"].double().square().sum(-1)
    error = (squares.var(0) + found.var(0)).sqrt() / N**0.5
    assert ((found.mean(0) - squares.mean(0)).abs() < 6 * error)[:4].all()


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("penalty", [Wasserstein(1.0), NarrowSalient(), MMD(1.0, "s")])
def test_penalties_on_s_of_background_cells_do_not_move_their_z(name, penalty) -> None:
    # Not in training mode, in which batch norm lets every cell depend on every other.
    vae, batch = make_vae(guide=OURS[name]()).eval(), make_batch(6, 4)
    (traces,) = vae.objective.traces(vae.model, vae.guide, batch)
    penalty(*traces, batch).backward()
    assert all(p.grad is None or not p.grad.any() for p in vae.guide.z_encoder.parameters())
    assert all(p.grad.any() for p in vae.guide.s_encoder.mean.parameters())


@pytest.mark.parametrize("name", MADE)
def test_the_normal_of_a_guide_has_the_covariance_of_its_draws(name) -> None:
    torch.manual_seed(0)
    vae = make_vae(guide=MADE[name](), latent_library=True).eval()
    guide, batch = vae.guide, make_batch(3, 4)
    for other in (n for n, _ in guide.named_parameters() if n.startswith(("correl", "flows"))):
        nn.init.normal_(guide.get_parameter(other), std=0.3)
    with torch.no_grad():
        mean, factor = guide.normal(batch)
        marginals = guide.marginals(batch)
        draws = draw_posterior(vae, batch, N).nodes
    assert guide.sites == tuple(marginals) == ("z", "s", "library")
    torch.testing.assert_close(mean, torch.cat([m for m, _ in marginals.values()], -1))
    covariance = factor @ factor.mT
    variance = torch.cat([v for _, v in marginals.values()], -1)
    torch.testing.assert_close(covariance.diagonal(dim1=-2, dim2=-1), variance)
    assert not factor.triu(1).any()
    values = [draws[s]["value"].log() if s == "library" else draws[s]["value"] for s in marginals]
    scale = variance.sqrt()
    found = covariance / scale.unsqueeze(-1) / scale.unsqueeze(-2)
    exact = name in CLOSED
    for cell in range(len(batch)):
        expected = torch.corrcoef(torch.cat(values, -1)[:, cell].T)
        if cell < 3:  # s of a background cell
            assert not found[cell, 3:5, :3].any()
            assert not found[cell, 3:5, 5:].any()
            expected[3:5, :3] = expected[:3, 3:5] = expected[3:5, 5:] = expected[5:, 3:5] = 0.0
        atol = 6 / N**0.5 if exact else 0.1 + 4 / 200**0.5
        torch.testing.assert_close(found[cell], expected, rtol=0, atol=atol)
