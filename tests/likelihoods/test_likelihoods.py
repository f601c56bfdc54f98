"""Poisson, zero-inflated Poisson, Bernoulli and Gaussian: against mpmath, SciPy and differences."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from helpers import N_GENES, make_batch, make_vae

from pyro_contrastive import (
    Bernoulli,
    CellBatch,
    Gaussian,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from pyro_contrastive.density.poisson import poisson_log_density
from pyro_contrastive.likelihoods import LIBRARY, SHORT_NAMES

RATES = [1e-26, 1e-20, 1e-7, 1e-3, 0.7, 1.0, 20.0, 300.0, 1e4, 1e8]
LOGITS = [-1e4, -80.0, -20.0, -1.0, 0.0, 3.0, 25.0, 80.0, 1e4]
OF_COUNTS = [
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
    Poisson,
    ZeroInflatedPoisson,
    Bernoulli,
]


def log_poisson(x: int, m: float) -> mpmath.mpf:
    return x * mpmath.log(m) - m - mpmath.loggamma(x + 1)


def log_zip(x: int, m: float, logit: float) -> mpmath.mpf:
    pi = 1 / (1 + mpmath.exp(-mpmath.mpf(logit)))
    if x:
        return -mpmath.log1p(mpmath.exp(mpmath.mpf(logit))) + log_poisson(x, m)
    return mpmath.log(pi + (1 - pi) * mpmath.exp(-m))


def log_seen(x: int, m: float) -> mpmath.mpf:
    return mpmath.log(-mpmath.expm1(-m)) if x else -mpmath.mpf(m)


def one_gene(likelihood, **heads: float):
    """The distribution of one gene by value of its heads, and the heads; library size 1."""
    tensors = {k: torch.tensor([[v]], requires_grad=True) for k, v in heads.items()}
    return likelihood(tensors, torch.ones(1, 1)), tensors


@pytest.fixture(autouse=True)
def many_digits():
    with mpmath.workdps(60):
        yield


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("m", RATES)
@pytest.mark.parametrize("x", [0, 1, 3, 1000, 100_000, 10_000_000])
def test_poisson_and_its_gradient(x, m):
    fn, heads = one_gene(Poisson(), scale=m)
    m32 = heads["scale"].item()
    found = fn.log_prob(torch.tensor([[float(x)]]))
    found.backward()
    assert found.item() == pytest.approx(float(log_poisson(x, m32)), rel=3e-7)
    assert heads["scale"].grad.item() == pytest.approx(x / m32 - 1, rel=1e-6)


@pytest.mark.usefixtures("each_way")
def test_poisson_derivatives_and_shapes():
    x = torch.tensor([[0.0, 1.0, 12.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    rate = (torch.rand(2, 3, dtype=torch.float64) * 5 + 0.2).requires_grad_()

    def log_prob(scale):
        return Poisson()({"scale": scale}, torch.ones(2, 1)).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, rate)
    assert torch.autograd.gradgradcheck(log_prob, rate)
    fn = Poisson()({"scale": rate}, torch.ones(2, 1)).base_dist
    draws = torch.arange(4.0, dtype=torch.float64).reshape(4, 1, 1)
    expected = scipy.stats.poisson(rate.detach().numpy()).logpmf(draws.numpy())
    np.testing.assert_allclose(fn.log_prob(draws).detach(), expected, rtol=1e-12)


def test_poisson_at_the_edges():
    rate = torch.tensor([0.0, 1.0, torch.finfo(torch.float32).tiny], requires_grad=True)
    counts = torch.tensor([False, True, True])  # seen or not: counts of 0 and 1
    found = poisson_log_density(counts, rate)
    gradient = torch.autograd.grad(found.sum(), rate, create_graph=True)[0]
    assert gradient.isfinite().all()
    assert gradient[:2].tolist() == [-1, 0]
    assert torch.autograd.grad(gradient[:2].sum(), rate)[0][:2].tolist() == [0, -1]
    masked = torch.where(
        torch.tensor([True, True, False]), poisson_log_density(counts * 9, rate), 0
    )
    assert torch.autograd.grad(masked.sum(), rate)[0].isfinite().all()


@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize("m", RATES)
@pytest.mark.parametrize("x", [0, 1, 1000])
def test_zero_inflated_poisson_and_its_gradients(x, m, logit):
    fn, heads = one_gene(ZeroInflatedPoisson(), scale=m, dropout=logit)
    m32, p32 = (mpmath.mpf(heads[k].item()) for k in ("scale", "dropout"))
    found = fn.log_prob(torch.tensor([[float(x)]]))
    found.backward()
    assert found.item() == pytest.approx(float(log_zip(x, m32, p32)), rel=1e-6, abs=1e-8)
    # Of pi + (1 - pi) exp(-m), with a = (1 - pi) exp(-m) / that:
    pi = 1 / (1 + mpmath.exp(-p32))
    if x:
        by_m, by_logit = x / m32 - 1, -pi
    else:
        zero = pi + (1 - pi) * mpmath.exp(-m32)
        by_m = -(1 - pi) * mpmath.exp(-m32) / zero
        by_logit = -pi * (1 - pi) * mpmath.expm1(-m32) / zero
    assert heads["scale"].grad.item() == pytest.approx(float(by_m), rel=1e-6, abs=1e-8)
    assert heads["dropout"].grad.item() == pytest.approx(float(by_logit), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("m", RATES)
@pytest.mark.parametrize("x", [0, 1])
def test_bernoulli_and_its_gradient(x, m):
    fn, heads = one_gene(Bernoulli(), scale=m)
    m32 = heads["scale"].item()
    found = fn.log_prob(torch.tensor([[float(x)]]))
    found.backward()
    assert found.item() == pytest.approx(float(log_seen(x, mpmath.mpf(m32))), rel=1e-6)
    expected = float(1 / mpmath.expm1(m32)) if x else -1.0
    assert heads["scale"].grad.item() == pytest.approx(expected, rel=1e-6)


def test_gaussian():
    likelihood = Gaussian()
    likelihood.build(n_hidden=4, n_genes=3)
    likelihood.log_scale.data = torch.tensor([-30.0, 0.0, 1.0])
    mean, x = torch.tensor([[0.5, 1.0, -2.0]]), torch.tensor([[0.52, 0.0, 3.0]])
    fn = likelihood({"mean": mean}, torch.ones(1, 1))
    scale = 0.01 + np.exp([-30.0, 0.0, 1.0])  # at least .01, whatever is learned
    expected = scipy.stats.norm(mean.numpy(), scale).logpdf(x.numpy()).sum()
    assert fn.log_prob(x).item() == pytest.approx(expected, rel=1e-5)
    expression = likelihood.expression({"mean": mean})
    np.testing.assert_allclose(expression, [[math.e**0.5 - 1, math.e - 1, 0.0]], rtol=1e-6)
    assert Gaussian(log1p=False).expression({"mean": mean}) is None


@pytest.mark.parametrize("likelihood", [Poisson, ZeroInflatedPoisson, Bernoulli])
def test_gradients_against_differences(likelihood):
    made = likelihood()
    names = ("scale", "dropout")[: len(made.heads)]
    heads = [torch.rand(3, 4, dtype=torch.float64) + 0.1 for _ in names]
    library = 5 * torch.rand(3, 1, dtype=torch.float64)
    x = torch.arange(12.0, dtype=torch.float64).reshape(3, 4) % 2

    def log_prob(library, *values):
        return made(dict(zip(names, values, strict=True)), library).log_prob(x)

    inputs = [t.requires_grad_() for t in (library, *heads)]
    assert torch.autograd.gradcheck(log_prob, inputs)


@pytest.mark.parametrize("gap", [60.0, 80.0, 85.0, 87.0, 87.3, 90.0, 103.0, 1e4])
@pytest.mark.parametrize("likelihood", OF_COUNTS)
def test_a_gene_the_decoder_has_given_up_does_not_break_training(likelihood, gap):
    made = likelihood()
    made.build(n_hidden=1, n_genes=3)
    layer = made.layers["scale"]
    layer.weight.data.zero_()
    layer.bias.data = torch.tensor([0.0, -1.0, -gap])
    heads = made.decode(torch.ones(1, 1), CellBatch(condition=torch.zeros(1).long()), {})
    x = torch.tensor([[9000.0, 900.0, 100.0]])
    if likelihood is Bernoulli:
        x = torch.ones(1, 3)
    log_prob = made(heads, torch.tensor([[1e4]])).log_prob(x)
    log_prob.backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(layer.bias.grad).all()


@pytest.mark.parametrize("likelihood", OF_COUNTS)
def test_a_cell_without_counts_does_not_break_training(likelihood):
    vae, batch = make_vae(likelihood=likelihood()), make_batch()
    x = (batch.x > 0).float()
    x[3] = 0
    loss = vae.objective(vae.model, vae.guide)(CellBatch(condition=batch.condition, x=x))
    loss.backward()
    grads = [p.grad for p in vae.parameters() if p.grad is not None]
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in grads)


def scipy_moments(likelihood, m: float, logit: float) -> tuple[float, float]:
    """Mean and variance by summing over the counts there can be."""
    counts = np.arange(200)
    p = scipy.stats.poisson(m).pmf(counts)
    if likelihood is ZeroInflatedPoisson:
        pi = 1 / (1 + math.exp(-logit))
        p = (1 - pi) * p + pi * (counts == 0)
    if likelihood is Bernoulli:
        counts = np.minimum(counts, 1)
    mean = float(p @ counts)
    return mean, float(p @ (counts - mean) ** 2)


@pytest.mark.parametrize("m", [0.1, 2.0, 30.0])
@pytest.mark.parametrize("likelihood", [Poisson, ZeroInflatedPoisson, Bernoulli])
def test_moments_and_draws(likelihood, m):
    fn, _ = one_gene(likelihood(), scale=m, dropout=-1.0)
    mean, variance = scipy_moments(likelihood, m, -1.0)
    assert fn.mean.item() == pytest.approx(mean, rel=1e-5)
    assert fn.variance.item() == pytest.approx(variance, rel=1e-4, abs=1e-7)
    n = 20_000
    draws = fn.expand((n, 1)).sample()
    assert draws.shape == (n, 1, 1)
    assert draws.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / n) + 1e-9)
    assert fn.expand((n, 1)).log_prob(draws).shape == (n, 1)


@pytest.mark.parametrize(
    ("likelihood", "heads"),
    [
        (Poisson, {"scale"}),
        (ZeroInflatedPoisson, {"scale", "dropout"}),
        (Bernoulli, {"scale"}),
        (Gaussian, {"mean"}),
    ],
)
def test_decoder_heads_follow_from_the_likelihood(likelihood, heads):
    vae = make_vae(likelihood=likelihood())
    layers = vae.model.likelihood.layers
    assert set(layers) == heads
    assert all(layer.weight.shape == (N_GENES, 8) for layer in layers.values())
    with_heads = {n for n, _ in vae.named_parameters() if n.startswith("model.likelihood.layers.")}
    assert len(with_heads) == 2 * len(heads)


@pytest.mark.parametrize("likelihood", [Poisson, ZeroInflatedPoisson, Bernoulli, Gaussian])
def test_reference_methods_take_them(likelihood):
    vae, batch = make_vae(likelihood=likelihood()), make_batch()
    vae.eval()
    x = (batch.x > 0).float()
    codes = torch.zeros(len(batch), 1)
    background, target = (
        {"x": x[part], "X": x[part], "batch_index": codes[part], "batch": codes[part]}
        for part in (batch.condition == 0, batch.condition == 1)
    )
    latents = vae.inference(background, target)
    inputs = [
        {**latents[k], "batch_index": cells["batch_index"]}
        for k, cells in (("background", background), ("target", target))
    ]
    outputs = vae.generative(*inputs)
    found = vae.loss({"background": background, "target": target}, latents, outputs)
    cells = CellBatch(condition=batch.condition, x=x)
    draws = {k: torch.cat([latents[g][k] for g in ("background", "target")]) for k in ("z", "s")}
    fn = vae.model.x_dist(vae.model.decode(draws["z"], draws["s"], cells), cells.library, cells)
    per_cell = -fn.log_prob(x)
    expected = per_cell[:5].mean() + per_cell[5:].mean()
    assert found.reconstruction_loss["reconstruction_loss"].mean().item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_short_names_are_of_likelihoods_that_need_no_arguments() -> None:
    for name, cls in SHORT_NAMES.items():
        assert name.isalnum()
        assert LIBRARY[cls.__name__] is cls
        cls().build(3, 2)
    assert len(set(SHORT_NAMES.values())) == len(SHORT_NAMES)
