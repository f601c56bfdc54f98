"""Priors for several treatments, and the additive likelihood."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.spatial
import scipy.special
import scipy.stats
import torch
from helpers import make_batch, make_vae
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from pyro_contrastive import (
    AdditivePoisson,
    CellBatch,
    ContrastiveVI,
    EscapingPerturbation,
    MixtureOfGaussians,
    PerConditionNormal,
    Poisson,
    PrivateSalient,
    SparseSalient,
    VampPrior,
    Wasserstein,
)
from pyro_contrastive.components.component import component_from_spec
from pyro_contrastive.testing import SimulationSettings, simulate

THREE = torch.tensor([0, 1, 2, 1])


def of_three(batch: CellBatch) -> CellBatch:
    """Give the cells two treatments."""
    condition = torch.where(batch.is_target, torch.arange(len(batch)) % 2 + 1, 0)
    return CellBatch(condition=condition, x=batch.x)


def test_every_treatment_has_a_block() -> None:
    prior = PrivateSalient(3, 4)
    used = prior.used(CellBatch(condition=THREE))
    assert used.int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_other_blocks_are_zero_and_cost_nothing(elbo) -> None:
    vae = make_vae(salient_prior=PrivateSalient(3, 2), elbo=elbo).eval()
    batch = of_three(make_batch())
    guide = poutine.trace(vae.guide).get_trace(batch)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(batch)
    used = vae.model.used_salient(guide.nodes["s"]["value"], batch)
    first, second = batch.condition == 1, batch.condition == 2
    assert (used[first, 0] != 0).all()
    assert not used[first, 1].any()
    assert not used[second, 0].any()
    assert (used[second, 1] != 0).all()
    assert not used[batch.condition == 0].any()
    # The other block's draw does not reach the counts.
    moved = guide.copy()
    moved.nodes["s"] = dict(guide.nodes["s"])
    shift = torch.where(first.unsqueeze(-1), torch.tensor([0.0, 9.0]), torch.zeros(2))
    moved.nodes["s"]["value"] = guide.nodes["s"]["value"] + shift
    again = poutine.trace(poutine.replay(vae.model, trace=moved)).get_trace(batch)
    assert torch.equal(again.nodes["scale"]["value"], model.nodes["scale"]["value"])
    # The KL divergence is that of the treatment's own block only.
    mean, variance = vae.guide.encode(batch)["s"]
    kl = 0.5 * (mean**2 + variance - 1 - variance.log())
    assert not kl[first, 1].any()
    assert not kl[second, 0].any()
    assert (kl[first, 0] > 0).all()


def test_penalties_look_at_every_block_of_background_cells() -> None:
    vae = make_vae(salient_prior=PrivateSalient(3, 2)).eval()
    batch = of_three(make_batch())
    guide = poutine.trace(vae.guide).get_trace(batch)
    pinned = Wasserstein.per_cell(guide)[~batch.is_target]
    mean, variance = vae.guide.s_encoder(torch.log1p(batch.x), torch.zeros(len(batch), 0))
    expected = (mean**2 + variance).sum(-1)[~batch.is_target]
    assert torch.allclose(pinned, expected)


def test_blocks_must_be_of_one_size() -> None:
    with pytest.raises(ValueError, match="multiple of the number of treatments, 3"):
        PrivateSalient(4, 10)


@pytest.mark.filterwarnings("ignore:There (is|are) only")
@pytest.mark.filterwarnings("ignore:No value of .*drug")
@pytest.mark.filterwarnings("ignore:.*treatments have fewer than 5 cells")
@pytest.mark.filterwarnings("ignore:.*than there are genes")
def test_priors_of_other_sizes_are_refused_when_the_model_is_made() -> None:
    adata = simulate(SimulationSettings(n_background=8, n_target=8, n_genes=5), seed=0)
    adata.obs["drug"] = ["none"] * 8 + ["a", "b"] * 4
    ContrastiveVI.setup_anndata(adata, condition_key="drug", background="none")
    with pytest.raises(
        ValueError, match=r"salient_prior: .* for 2 conditions, and the data have 3"
    ):
        ContrastiveVI(adata, salient_prior=PerConditionNormal(2, 10))
    with pytest.raises(ValueError, match=r"background_prior: .* for 7 dimensions, .* has 10"):
        ContrastiveVI(adata, background_prior=MixtureOfGaussians(7))
    for batch_key, n_genes in (("drug", 5), (None, 4)):
        ContrastiveVI.setup_anndata(
            adata, condition_key="drug", background="none", batch_key=batch_key
        )
        vamp = VampPrior.from_counts(adata.X[:, :n_genes], 3)
        said = f"made for {n_genes} genes and 0 .* takes 5 genes and {3 if batch_key else 0}"
        with pytest.raises(ValueError, match=said):
            ContrastiveVI(adata, salient_prior=vamp)
    ContrastiveVI.setup_anndata(adata, condition_key="drug", background="none", batch_key="drug")
    columns = pd.get_dummies(adata.obs["drug"], dtype=float)
    vamp = VampPrior.from_counts(adata.X, 3, covariates=columns)
    model = ContrastiveVI(adata, n_hidden=4, salient_prior=vamp)
    model.train(max_epochs=1, enable_progress_bar=False)


def test_the_escaping_mixture_by_hand() -> None:
    prior = EscapingPerturbation(3, 2, escape_scale=0.2)
    with torch.no_grad():
        prior.means.copy_(torch.tensor([[0.0, 0.0], [2.0, -1.0], [0.5, 0.5]]))
        prior.logits.copy_(torch.tensor([0.0, 1.0, -2.0]))
    s = torch.tensor([[0.1, 0.0], [1.5, -1.0], [0.1, -0.1], [0.05, 0.02]])
    acted, escaped = [], []
    for value, c in zip(s.numpy(), THREE, strict=True):
        share = scipy.special.expit(prior.logits[c].item())
        mean = prior.means[c].detach().numpy()
        acted.append(np.log(share) + scipy.stats.norm.logpdf(value, mean, 1).sum())
        escaped.append(np.log1p(-share) + scipy.stats.norm.logpdf(value, 0, 0.2).sum())
    density = prior(CellBatch(condition=THREE)).log_prob(s)
    np.testing.assert_allclose(density.detach(), np.logaddexp(acted, escaped), rtol=1e-5)
    probability = prior.escape_probability(s.expand(3, 4, 2), THREE)
    expected = np.exp(escaped - np.logaddexp(acted, escaped))
    np.testing.assert_allclose(probability, np.tile(expected, (3, 1)), rtol=1e-5)
    assert prior.shares[1].item() == pytest.approx(scipy.special.expit(1.0))


@pytest.mark.parametrize("prior", [PrivateSalient(3, 4), EscapingPerturbation(3, 4, 0.3)])
def test_they_are_written_down_and_made_again(prior) -> None:
    again = component_from_spec(prior.spec(), "salient_prior")
    assert again.arguments() == prior.arguments()


def additive_vae(**more):
    return make_vae(
        likelihood=AdditivePoisson(),
        background_prior=dist.Gamma(1.0, 1.0),
        salient_prior=dist.LogNormal(-1.0, 1.0),
        n_layers_decoder=0,
        **more,
    )


def test_additive_counts_by_hand() -> None:
    vae, batch = additive_vae(n_batch=2).eval(), make_batch(n_batch=2)
    trace = poutine.trace(vae.model).get_trace(batch)
    loadings = vae.model.likelihood.loadings  # z, s, batches
    s = torch.where(batch.is_target.unsqueeze(-1), trace.nodes["s"]["value"], 0.0)
    factors = torch.cat([trace.nodes["z"]["value"], s, torch.eye(2)[batch.batch_codes]], dim=1)
    mean = batch.x.sum(1, keepdim=True) * (factors @ loadings.T)
    expected = scipy.stats.poisson.logpmf(batch.x, mean.detach()).sum(1)
    trace.compute_log_prob()
    np.testing.assert_allclose(trace.nodes["x"]["log_prob"].detach(), expected, rtol=1e-4)


def test_additive_counts_want_positive_latents() -> None:
    vae = make_vae(likelihood=AdditivePoisson(), n_layers_decoder=0)
    with pytest.raises(ValueError, match="Use positive priors"):
        vae.objective(vae.model, vae.guide)(make_batch())


@pytest.mark.slow
def test_additive_factors_are_found() -> None:
    # Two gene programmes shared by all cells, a third one in target cells only.
    rng = np.random.default_rng(0)
    programmes = np.repeat(np.eye(3), 10, axis=1)[:, :30] / 10
    z = rng.gamma(1.0, 1.0, (600, 2)) + 0.05
    s = rng.gamma(1.0, 1.0, 600) * (np.arange(600) >= 300)
    rate = 300 * (z @ programmes[:2] + s[:, None] * programmes[2])
    batch = CellBatch(
        condition=torch.arange(600).ge(300).long(),
        x=torch.as_tensor(rng.poisson(rate), dtype=torch.float32),
        library=torch.full((600, 1), 300.0),
    )
    pyro.set_rng_seed(0)
    vae = additive_vae(n_input=30, n_hidden=32, n_background_latent=2, n_salient_latent=1)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), vae.objective)
    for _ in range(800):
        svi.step(batch)
    loadings = vae.model.likelihood.loadings.detach().numpy()
    salient = loadings[:, 2] / loadings[:, 2].sum()
    assert salient[20:].sum() > 0.9
    vae.eval()
    found = poutine.trace(vae.guide).get_trace(batch).nodes["s"]["fn"].mean[300:, 0]
    assert scipy.stats.spearmanr(found.detach(), s[300:]).statistic > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("n_true", [1, 2, 3])
def test_the_sparse_prior_leaves_the_true_number_of_dimensions(n_true) -> None:
    settings = SimulationSettings(
        n_background=1000, n_target=1000, n_genes=200, n_salient_latent=n_true
    )
    adata = simulate(settings, seed=0)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    found = []
    for seed in range(3):  # now and then a run spreads two dimensions over three, and stays there
        pyro.set_rng_seed(seed)
        model = ContrastiveVI(
            adata,
            n_hidden=64,
            n_background_latent=5,
            n_salient_latent=6,
            n_layers_decoder=0,
            salient_prior=SparseSalient(6),
            elbo=TraceMeanField_ELBO,
        )
        plan = {"lr": 5e-3, "eps": 1e-8}
        model.train(max_epochs=150, enable_progress_bar=False, seed=seed, plan_kwargs=plan)
        found.append(int(model.get_latent_usage()["active"].sum()))
    assert np.median(found) == n_true, found


@pytest.mark.slow
def test_means_per_treatment_are_found_in_counts() -> None:
    # s has unit covariance within a treatment, so the means are known but for a rotation: their
    # distances from each other, and from the 0 of background cells, are not free.
    rng = np.random.default_rng(0)
    truth = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [-2.0, -2.0], [0.3, 0.0]])
    condition = np.repeat(np.arange(5), 200)
    z, noise = rng.standard_normal((2, 1000, 2))
    s = (truth[condition] + noise) * (condition > 0)[:, None]
    log_rate = rng.normal(0, 1, 60) + np.hstack([z, s]) @ rng.normal(0, 0.4, (4, 60))
    batch = CellBatch(
        condition=torch.as_tensor(condition),
        x=torch.as_tensor(rng.poisson(1000 * scipy.special.softmax(log_rate, 1))).float(),
    )
    pyro.set_rng_seed(0)
    prior = PerConditionNormal(5, 2)
    vae = make_vae(
        n_input=60,
        n_hidden=64,
        n_background_latent=2,
        n_salient_latent=2,
        n_layers_decoder=0,
        dropout_rate=0.0,
        likelihood=Poisson(),
        salient_prior=prior,
        elbo=TraceMeanField_ELBO,
    )
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), vae.objective)
    for _ in range(800):
        svi.step(batch)
    found, expected = (scipy.spatial.distance.pdist(m) for m in (prior.means.detach(), truth))
    print(np.round(np.stack([found, expected]), 2))
    assert np.abs(found - expected).max() < 1.0  # of up to 5
    assert np.corrcoef(found, expected)[0, 1] > 0.9


@pytest.mark.slow
def test_means_per_treatment_and_escapers_are_found() -> None:
    # Two treatments, of which a third of the cells escape; the effect is on two sets of genes.
    rng = np.random.default_rng(1)
    n = 900
    condition = np.repeat([0, 1, 2], n // 3)
    acted = (condition > 0) & (rng.random(n) < 2 / 3)
    log_scale = rng.normal(0, 0.3, 40) + 0.3 * rng.normal(size=(n, 1)) * rng.normal(size=40)
    log_scale[:, :8] += 1.5 * (acted & (condition == 1))[:, None]
    log_scale[:, 8:16] += 1.5 * (acted & (condition == 2))[:, None]
    scale = scipy.special.softmax(log_scale, axis=1)
    batch = CellBatch(
        condition=torch.as_tensor(condition),
        x=torch.as_tensor(rng.poisson(400 * scale), dtype=torch.float32),
    )
    pyro.set_rng_seed(0)
    prior = EscapingPerturbation(3, 3)
    vae = make_vae(
        n_input=40,
        n_hidden=32,
        n_salient_latent=3,
        salient_prior=prior,
        penalties=[Wasserstein(1.0)],
    )
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), vae.objective)
    for _ in range(500):
        svi.step(batch)
    vae.eval()
    with torch.no_grad():
        s = torch.stack(
            [poutine.trace(vae.guide).get_trace(batch).nodes["s"]["value"] for _ in range(20)]
        )
    escaped = prior.escape_probability(s, batch.condition).mean(0).numpy()
    target = condition > 0
    right = (escaped[target] < 0.5) == acted[target]
    assert right.mean() > 0.9
    assert prior.shares[1:].tolist() == pytest.approx([2 / 3, 2 / 3], abs=0.12)
    assert (prior.means[1] - prior.means[2]).norm() > 1.0
