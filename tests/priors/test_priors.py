"""Priors, likelihoods and networks on their own."""

from __future__ import annotations

import json

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers import make_batch, make_vae
from pyro import poutine

from pyro_contrastive import (
    CellBatch,
    FixedPrior,
    LogNormalLibrary,
    NegativeBinomial,
    StandardNormal,
    ZeroInflatedNegativeBinomial,
)
from pyro_contrastive.components.component import component_from_spec
from pyro_contrastive.density.heads import simplex
from pyro_contrastive.networks import CellwiseBatchNorm, Covariates

BATCH = CellBatch(condition=torch.tensor([0, 1, 2]), batch=torch.tensor([0, 1, 0]))
FIXED = [
    (dist.Laplace(0.0, 2.0), scipy.stats.laplace(0, 2)),
    (torch.distributions.StudentT(4.0, 1.0, 2.0), scipy.stats.t(4, 1, 2)),
    (dist.Normal(torch.zeros(3), torch.full((3,), 0.5)).to_event(1), scipy.stats.norm(0, 0.5)),
    (dist.LogNormal(0.0, 1.0), scipy.stats.lognorm(1.0)),
]


@pytest.mark.parametrize(("given", "reference"), FIXED)
def test_fixed_priors_have_the_distributions_density(given, reference) -> None:
    prior = FixedPrior(given, 3)(BATCH)
    assert prior.event_shape == (3,)
    x = torch.tensor([0.3, 1.7, 2.2])
    assert float(prior.log_prob(x)) == pytest.approx(reference.logpdf(x.numpy()).sum(), rel=1e-5)


@pytest.mark.parametrize("given", [FIXED[0][0], FIXED[1][0], FIXED[2][0]])
def test_a_vae_trains_with_any_fixed_prior(given) -> None:
    vae = make_vae(background_prior=given, salient_prior=dist.Laplace(0.0, 1.0))
    loss = vae.objective(vae.model, vae.guide)(make_batch())
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize(
    "component",
    [
        StandardNormal(4),
        FixedPrior(dist.StudentT(4.0, torch.arange(3.0), 2.0), 3),
        LogNormalLibrary([1.0, 2.0], [0.1, 0.2]),
    ],
)
def test_priors_survive_being_written_down(component) -> None:
    written = json.loads(json.dumps(component.spec()))
    again = component_from_spec(written, "prior")
    x = torch.rand(3, component(BATCH).event_shape[0]) + 0.1
    assert torch.equal(again(BATCH).log_prob(x), component(BATCH).log_prob(x))


def test_fixed_priors_follow_the_module() -> None:
    prior = FixedPrior(dist.Laplace(0.0, 2.0), 3).double()
    assert prior(BATCH).sample().dtype == torch.float64
    assert list(prior.parameters()) == []


@pytest.mark.parametrize(
    "given",
    [
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        dist.Normal(torch.nn.Parameter(torch.zeros(3)), 1.0),
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), torch.ones(2))
        ),
    ],
)
def test_distributions_that_cannot_be_used_say_what_to_do(given) -> None:
    with pytest.raises(TypeError, match=r"subclass pyro_contrastive\.Prior"):
        FixedPrior(given, 3)


def test_a_prior_of_the_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match="4 dimensions"):
        FixedPrior(dist.Normal(torch.zeros(3), 1.0), 4)


def test_library_prior_is_log_normal_per_batch() -> None:
    prior = LogNormalLibrary(np.array([[1.0, 2.0]]), np.array([[0.25, 0.04]]))(BATCH)
    assert prior.batch_shape == (3,)
    assert prior.event_shape == (1,)
    value = torch.tensor([[2.0], [7.0], [3.0]])
    expected = [
        scipy.stats.lognorm.logpdf(v, sd, scale=np.exp(mean))
        for v, sd, mean in ((2, 0.5, 1), (7, 0.2, 2), (3, 0.5, 1))
    ]
    assert prior.log_prob(value).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("means", "variances", "message"),
    [([1.0], [1.0, 2.0], "2; both need"), ([1.0, 2.0], [1.0, 0.0], r"batch \[1\]")],
)
def test_bad_library_priors_are_refused(means, variances, message) -> None:
    with pytest.raises(ValueError, match=message):
        LogNormalLibrary(means, variances)


def test_the_guide_of_a_positive_latent_is_log_normal() -> None:
    vae = make_vae(background_prior=dist.Gamma(2.0, 1.0), salient_prior=dist.LogNormal(0.0, 1.0))
    vae.eval()
    batch = make_batch()
    mean, variance = vae.guide.encode(batch)["z"]
    trace = poutine.trace(vae.guide).get_trace(batch)
    for site in "zs":
        assert (trace.nodes[site]["value"] > 0).all()
    # The mean of a log-normal, by the textbook.
    assert torch.allclose(trace.nodes["z"]["fn"].mean, (mean + variance / 2).exp())
    loss = vae.objective(vae.model, vae.guide)(batch)
    loss.backward()
    assert loss.isfinite()
    drawn = vae.sample(4, library=30.0, return_latents=True)
    assert (drawn["z"] > 0).all()
    groups = [
        {"x": batch.x[rows], "batch_index": batch.batch[rows].unsqueeze(-1)}
        for rows in (slice(5), slice(5, None))
    ]
    encoded = vae.eval().inference(*groups)
    assert torch.allclose(encoded["target"]["qz_m"], vae.guide.encode(batch)["z"][0][5:], atol=1e-6)
    assert not encoded["background"]["s"].any()


@pytest.mark.parametrize("given", [dist.Uniform(0.0, 1.0), dist.Beta(2.0, 2.0), dist.Poisson(3.0)])
def test_priors_on_intervals_and_integers_are_refused(given) -> None:
    with pytest.raises(TypeError, match="the guide covers only the real line"):
        make_vae(salient_prior=given)


def test_a_decoder_without_hidden_layers_is_log_linear() -> None:
    vae = make_vae(n_batch=3, n_layers_decoder=0).eval()
    batch = make_batch(n_batch=3)
    z, s = torch.randn(12, 3), torch.randn(12, 2)
    linear = vae.model.likelihood.layers["scale"]
    one_hot = torch.eye(3)[batch.batch_codes]
    logits = torch.cat([z, s, one_hot], dim=1) @ linear.weight.T + linear.bias
    assert torch.allclose(vae.model.decode(z, s, batch)["scale"], logits.softmax(-1), atol=1e-6)
    assert len(vae.guide.z_encoder.body.blocks) == 1


def test_likelihoods_cannot_be_shared_between_models() -> None:
    likelihood = NegativeBinomial()
    make_vae(likelihood=likelihood)
    with pytest.raises(ValueError, match="already belongs to a model"):
        make_vae(likelihood=likelihood)


@pytest.mark.parametrize("likelihood", [NegativeBinomial, ZeroInflatedNegativeBinomial])
def test_likelihoods_decode_to_distributions_of_counts(likelihood) -> None:
    made = likelihood()
    made.build(n_hidden=4, n_genes=6)
    heads = made.decode(torch.randn(2, 3, 4), BATCH, {})
    assert set(heads) == {*likelihood.heads, "inverse_dispersion"}
    assert torch.allclose(heads["scale"].sum(-1), torch.ones(2, 3))
    counts = made(heads, torch.full((3, 1), 20.0))
    assert counts.batch_shape == (2, 3)
    assert counts.event_shape == (6,)
    assert counts.log_prob(counts.sample()).isfinite().all()


def test_expression_never_underflows_to_zero() -> None:
    made = NegativeBinomial()
    made.build(n_hidden=2, n_genes=3)
    with torch.no_grad():
        made.layers["scale"].weight.fill_(0.0)
        made.layers["scale"].bias.copy_(torch.tensor([0.0, -500.0, 0.0]))
    counts = made(made.decode(torch.zeros(1, 2), BATCH, {}), torch.tensor([[100.0]]))
    assert counts.log_prob(torch.ones(1, 3)).isfinite().all()
    # Nor does the gradient overflow, which has the counts divided by the expression.
    for dtype in (torch.float32, torch.float64):
        scale = simplex(torch.tensor([0.0, -2000.0, 0.0], dtype=dtype))
        assert (1e12 / scale).isfinite().all()
        assert scale.tolist() == pytest.approx([0.5, 0.0, 0.5], abs=1e-20)


def test_a_likelihood_written_in_a_notebook_trains_and_samples() -> None:
    from pyro_contrastive import Likelihood

    class Poisson(Likelihood):
        heads = ("scale",)

        def forward(self, heads, library):
            return dist.Poisson(library * heads["scale"]).to_event(1)

    vae = make_vae(likelihood=Poisson())
    vae.objective(vae.model, vae.guide)(make_batch()).backward()
    assert vae.model.likelihood.layers["scale"].weight.grad.any()
    assert vae.sample(5, library=30.0).shape == (5, 12)


def test_batch_norm_of_one_cell_uses_running_statistics() -> None:
    norm = CellwiseBatchNorm(3)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm.running_var.copy_(torch.tensor([4.0, 4.0, 4.0]))
    out = norm.train()(torch.tensor([[3.0, 2.0, 1.0]]))
    assert torch.allclose(out, torch.tensor([[1.0, 0.0, -1.0]]), atol=1e-4)
    assert norm.running_mean.tolist() == [1.0, 2.0, 3.0]


def test_batch_norm_flattens_leading_axes() -> None:
    norm, h = CellwiseBatchNorm(3).train(), torch.randn(2, 5, 3)
    flat = h.reshape(10, 3)
    expected = (flat - flat.mean(0)) / (flat.var(0, unbiased=False) + norm.eps).sqrt()
    assert torch.allclose(norm(h), expected.reshape(2, 5, 3), atol=1e-6)


def test_covariates_by_hand() -> None:
    cells = CellBatch(
        condition=torch.tensor([0, 1]),
        batch=torch.tensor([1, 0]),
        categorical=torch.tensor([[2, 0], [0, 0]]),
        continuous=torch.tensor([[0.5], [-1.0]]),
    )
    covariates = Covariates(2, [3, 1], 1)  # a category with one level has no column
    expected = [[0, 1, 0, 0, 1, 0.5], [1, 0, 1, 0, 0, -1.0]]
    assert covariates.n_out == 6
    assert covariates(cells, like=torch.zeros(1)).tolist() == expected
    assert Covariates(1)(cells, like=torch.zeros(1)).shape == (2, 0)


def test_cell_batches_check_shapes_and_join() -> None:
    with pytest.raises(ValueError, match=r"`x` has shape \[2, 3\].*with 4 cells"):
        CellBatch(condition=torch.zeros(4), x=torch.zeros(2, 3))
    one = CellBatch(condition=torch.tensor([0]), x=torch.ones(1, 3))
    other = CellBatch(condition=torch.tensor([1, 2]), x=2 * torch.ones(2, 3))
    joined = CellBatch.cat([one, other])
    assert joined.library.squeeze(-1).tolist() == [3.0, 6.0, 6.0]
    assert joined.is_target.tolist() == [False, True, True]
    with pytest.raises(ValueError, match="missing in some"):
        CellBatch.cat([one, CellBatch(condition=torch.tensor([1]))])
    assert joined.to("cpu").x is joined.x
