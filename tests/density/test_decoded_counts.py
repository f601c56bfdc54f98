"""The decoder's last layer and the count density as one function, by tensors and by rows."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import make_batch, make_vae
from torch import Tensor, nn

from pyro_contrastive import (
    ContrastiveVI,
    NegativeBinomial,
    Penalty,
    Poisson,
    Wasserstein,
    ZeroInflatedNegativeBinomial,
)
from pyro_contrastive.analysis.runs import draw_posterior, value_at
from pyro_contrastive.density import rows, ways
from pyro_contrastive.density.decoded import DecodedCounts
from pyro_contrastive.density.fused import by_tensors, decoded_log_density
from pyro_contrastive.density.heads import Heads, bfloat16_products, products_are_half
from pyro_contrastive.networks import QuickDropout
from pyro_contrastive.testing import SimulationSettings, simulate

numba = pytest.importorskip("numba")

N_CELLS, N_GENES = 20, 60
REGIMES = ("typical", "deep", "overdispersed", "nearly poisson")


def textbook(x: Tensor, scale: Tensor, library: Tensor, t: Tensor, logits: Tensor | None) -> Tensor:
    """Log-probability of each cell as the formula is usually written."""
    m = library * scale.softmax(-1)
    log_nb = (x + t).lgamma() - t.lgamma() - (x + 1).lgamma()
    log_nb = log_nb + t * (t / (t + m)).log() + x * (m / (t + m)).log()
    if logits is None:
        return log_nb.sum(-1)
    p = logits.sigmoid()
    zero = torch.log(p + (1 - p) * torch.exp(-t * torch.log1p(m / t)))
    return torch.where(x == 0, zero, torch.log1p(-p) + log_nb).sum(-1)


def arguments(regime: str, seed: int = 0) -> tuple[Tensor, ...]:
    """Counts, logits of the scale, library, inverse dispersion, logits of zeros: float32."""
    rng = np.random.default_rng(seed)
    scale = rng.normal(0, 1.5, (N_CELLS, N_GENES))
    library = np.exp(rng.normal({"deep": 9.0}.get(regime, 4.0), 0.5, (N_CELLS, 1)))
    t = np.exp(
        rng.normal({"overdispersed": -3.0, "nearly poisson": 9.0}.get(regime, 0.5), 1, N_GENES)
    )
    rho = np.exp(scale) / np.exp(scale).sum(1, keepdims=True)
    x = rng.poisson(rng.gamma(t, rho * library / t)).astype(float)
    x[rng.random(x.shape) < 0.3] = 0
    logits = rng.normal(-1, 2, x.shape)
    return tuple(torch.tensor(a, dtype=torch.float32) for a in (x, scale, library, t, logits))


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether numbers agree to what single precision of their own size, and of 1, allows."""
    error = (found.double() - expected).abs()
    return bool((error <= 5e-6 * expected.abs().clamp(min=1.0)).all())


@pytest.mark.slow
@pytest.mark.parametrize("evaluate", [by_tensors, rows.by_rows])
@pytest.mark.parametrize("inflated", [True, False])
@pytest.mark.parametrize("regime", REGIMES)
def test_values_and_slopes_are_those_of_the_textbook_in_double_precision(
    evaluate: Any, inflated: bool, regime: str
) -> None:
    x, *single = arguments(regime)
    if not inflated:
        single[-1] = None
    double = [None if a is None else a.double().requires_grad_() for a in single]
    expected = textbook(x.double(), *double)
    leaves = [a for a in double if a is not None]
    gradients = torch.autograd.grad(expected.sum(), leaves)
    scale, library, t, logits = single
    found = evaluate(x, scale.clone(), library, t, None if logits is None else logits.clone())
    assert close(found.log_prob / N_GENES, expected.detach() / N_GENES)
    assert close(found.by_scale, gradients[0])
    # A sum over genes of numbers that cancel: what single precision allows is a gene's share.
    assert close(found.by_log_library / N_GENES, gradients[1] * library.double() / N_GENES)
    relative = (
        found.by_inverse_dispersion.double().sum(0) * t / gradients[2].mul(t).abs().clamp(min=1)
    )
    assert torch.allclose(
        relative, gradients[2] * t / gradients[2].mul(t).abs().clamp(min=1), atol=2e-4
    )
    if inflated:
        assert close(found.by_dropout, gradients[3])


@pytest.mark.parametrize("inflated", [True, False])
def test_counts_out_of_the_tables_are_evaluated_too(inflated: bool) -> None:
    x, *single = arguments("typical")
    x[0, :6] = torch.tensor([15.0, 16.0, 300.0, 1e5, 2.5, 0.5])  # nobody checks that they are whole
    if not inflated:
        single[-1] = None
    expected = textbook(x.double(), *(None if a is None else a.double() for a in single))
    for evaluate in (by_tensors, rows.by_rows):
        copies = [None if a is None else a.clone() for a in single]
        found = evaluate(x, *copies).log_prob.double()
        assert ((found - expected).abs() <= 1e-6 * expected.abs()).all()


def test_rows_do_not_depend_on_the_number_of_threads() -> None:
    x, *single = arguments("typical")
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(rows.by_rows(x, *(a.clone() for a in single)))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("which", "bad"), [(1, math.nan), (1, math.inf), (2, math.nan), (3, math.nan), (4, math.nan)]
)
def test_what_is_not_finite_is_not_hidden_by_the_compiled_code(which: int, bad: float) -> None:
    single = [a.clone() for a in arguments("typical")]
    single[which][-1, ...] = bad
    log_prob = rows.by_rows(*single).log_prob
    assert not torch.isfinite(log_prob[-1])
    if which != 3:  # the dispersion is shared by all cells
        assert torch.isfinite(log_prob[:-1]).all()


def test_without_numba_the_step_is_the_slower_one_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ways, "MIN_ENTRIES", 0)
    monkeypatch.delitem(sys.modules, "pyro_contrastive.density.kernel", raising=False)
    monkeypatch.delattr("pyro_contrastive.density.kernel", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "pyro_contrastive.density.kernel_functions", raising=False)
    monkeypatch.delattr("pyro_contrastive.density.kernel_functions", raising=False)
    x, scale, library, t, _ = arguments("typical")
    rows.kernel.cache_clear()
    try:
        with caplog.at_level("INFO", "pyro_contrastive"):
            assert not ways.can_use_rows(x, scale, library, t)
            assert not ways.can_use_rows(x, scale, library, t)
    finally:
        rows.kernel.cache_clear()
    assert [r.message for r in caplog.records if "compiled code" in r.message] == [
        caplog.records[0].message
    ]


def test_the_compiled_functions_have_their_stated_precision() -> None:
    from pyro_contrastive.density import kernel_functions as functions

    one = np.float32(1)

    @numba.njit
    def apply(single: Any, double: Any, out: Any, exact: Any) -> None:
        for i in range(single.size):
            out[0, i] = functions.log32(single[i])
            out[1, i] = functions.log1p32(single[i], one / (one + single[i]))
            out[2, i] = functions.exp32(-single[i])
            exact[0, i] = functions.log64(double[i])
            exact[1, i] = functions.log1p64(double[i], 1.0 / (1.0 + double[i]))

    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(-30, 4.4, 50_000)).astype(np.float32)
    d = x.astype(float)
    out, exact = np.empty((3, x.size), np.float32), np.empty((2, x.size))
    apply(x, d, out, exact)
    np.testing.assert_allclose(out[0], np.log(d), rtol=3e-7, atol=1e-7)
    np.testing.assert_allclose(out[1], np.log1p(d), rtol=3e-7)
    np.testing.assert_allclose(out[2], np.exp(-d), rtol=3e-7)
    np.testing.assert_allclose(exact[0], np.log(d), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(exact[1], np.log1p(d), rtol=1e-12)


def layers() -> list[Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(4, 3, dtype=torch.float64)
    library = torch.rand(4, 1, dtype=torch.float64) * 20 + 5
    t = torch.rand(5, dtype=torch.float64) + 0.5
    return [
        hidden,
        library,
        t,
        *(torch.randn(*s, dtype=torch.float64) for s in ((5, 3), (5,), (5, 3), (5,))),
    ]


@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_gradient_is_that_of_finite_differences_and_can_be_differentiated(
    n_layers: int,
) -> None:
    x = torch.tensor(np.random.default_rng(0).poisson(1.0, (4, 5)), dtype=torch.float64)

    def log_prob(hidden: Tensor, library: Tensor, t: Tensor, *weights: Tensor) -> Tensor:
        return decoded_log_density(x, hidden, library, t, weights[:2], weights[2:] or None)

    inputs = [a.requires_grad_() for a in layers()][: 3 + 2 * n_layers]
    assert torch.autograd.gradcheck(log_prob, inputs)
    assert torch.autograd.gradgradcheck(log_prob, inputs)


def test_inverse_dispersions_of_each_cell_get_a_gradient_of_their_own() -> None:
    hidden, library, _, *weights = layers()
    x = torch.ones(4, 5, dtype=torch.float64)
    t = (torch.rand(4, 5, dtype=torch.float64) + 0.5).requires_grad_()
    pairs = (tuple(weights[:2]), tuple(weights[2:]))
    assert torch.autograd.gradcheck(
        lambda t: decoded_log_density(x, hidden, library, t, *pairs), [t]
    )


def decoded(likelihood: Any, n_cells: int = 6) -> tuple[Heads, Tensor]:
    likelihood.build(8, 12)
    heads = likelihood.decode(torch.randn(n_cells, 8).relu(), make_batch(), {})
    return heads, torch.full((n_cells, 1), 30.0)


@pytest.mark.parametrize("kind", [NegativeBinomial, ZeroInflatedNegativeBinomial])
def test_the_quick_form_is_the_same_distribution(kind: Any) -> None:
    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        likelihood = kind()
        heads, library = decoded(likelihood)
        quick = likelihood(heads, library)
        whole = likelihood(dict(heads), library)
    assert isinstance(quick, DecodedCounts)
    assert not isinstance(whole, DecodedCounts)
    assert (quick.batch_shape, quick.event_shape) == (whole.batch_shape, whole.event_shape)
    torch.manual_seed(1)
    x = quick.sample()
    torch.manual_seed(1)
    assert torch.equal(x, whole.sample())
    assert torch.allclose(quick.log_prob(x), whole.log_prob(x), rtol=1e-5)
    more = quick.sample((3,))
    assert torch.allclose(quick.log_prob(more), whole.log_prob(more), rtol=1e-5)
    assert torch.allclose(quick.mean, whole.mean)
    assert torch.allclose(quick.variance, whole.variance)
    assert torch.allclose(quick.base_dist.log_prob(x), whole.base_dist.log_prob(x))
    assert quick.expand([6]) is quick
    assert quick.expand([2, 6]).batch_shape == (2, 6)


def test_the_quick_form_gives_way_where_it_cannot_be_had() -> None:
    def made(looked_at: bool = False, n_samples: int = 0, validate: bool = False) -> Any:
        with pyro.validation_enabled(validate):
            likelihood = ZeroInflatedNegativeBinomial()
            heads, library = decoded(likelihood)
            if n_samples:
                heads = Heads(heads.hidden.expand(n_samples, -1, -1), likelihood.layers) | {
                    "inverse_dispersion": torch.ones(12)
                }
            if looked_at:
                assert heads["scale"].shape == (6, 12)
            return likelihood(heads, library)

    assert isinstance(made(), DecodedCounts)
    assert not isinstance(made(looked_at=True), DecodedCounts)
    assert not isinstance(made(n_samples=3), DecodedCounts)
    assert not isinstance(made(validate=True), DecodedCounts)


class Counting(nn.Linear):
    n_calls = 0

    def forward(self, h: Tensor) -> Tensor:
        self.n_calls += 1
        return super().forward(h)


def test_heads_are_evaluated_when_looked_at_and_once() -> None:
    layers = nn.ModuleDict({"scale": Counting(3, 4), "dropout": Counting(3, 4)})
    hidden = torch.randn(2, 3)
    with torch.no_grad():
        heads = Heads(hidden, layers)
    assert list(heads) == ["scale", "dropout"]
    assert len(heads) == 2
    assert "dropout" in heads
    assert layers["scale"].n_calls == layers["dropout"].n_calls == 0
    assert not heads["scale"].requires_grad, "the mode is the one they were made in"
    assert torch.equal(heads["scale"], heads.get("scale"))
    assert torch.allclose(heads["scale"].sum(-1), torch.ones(2))
    assert (layers["scale"].n_calls, layers["dropout"].n_calls) == (1, 0)
    more = heads | {"own": hidden}
    assert set(more) == {"scale", "dropout", "own"}
    assert "own" not in heads
    del more["dropout"]
    assert set(more) == {"scale", "own"}
    assert "dropout" in heads
    with pytest.raises(KeyError):
        del more["dropout"]
    with pytest.raises(KeyError):
        heads["nonsense"]


def test_hooks_on_a_layer_still_run() -> None:
    likelihood, seen = ZeroInflatedNegativeBinomial(), []
    with pyro.validation_enabled(False):
        heads, library = decoded(likelihood)
        likelihood.layers["dropout"].register_forward_hook(lambda *_: seen.append(1))
        distribution = likelihood(heads, library)
        assert not isinstance(distribution, DecodedCounts)
        distribution.log_prob(torch.ones(6, 12))
    assert seen == [1]


def test_expression_does_not_pay_for_the_head_of_dropout() -> None:
    vae, batch = make_vae().eval(), make_batch()
    likelihood = vae.model.likelihood
    likelihood.layers = nn.ModuleDict(
        {
            name: Counting(layer.in_features, layer.out_features)
            for name, layer in likelihood.layers.items()
        }
    )
    value = value_at("scale", vae, batch, draw_posterior(vae, batch))
    assert value is not None
    assert [layer.n_calls for layer in likelihood.layers.values()] == [1, 0]


class SumOfScale(Penalty):
    def forward(self, model_trace: Any, guide_trace: Any, batch: Any) -> Tensor:
        return model_trace.nodes["scale"]["value"].sum(-1).mean()


def test_a_penalty_sees_expression_unless_it_says_that_it_does_not_look() -> None:
    batch = make_batch()
    for penalties, there in (([Wasserstein(1.0)], False), ([SumOfScale(1.0)], True)):
        vae = make_vae(penalties=penalties)
        (traces,) = vae.objective.traces(vae.model, vae.guide, batch)
        assert ("scale" in traces[0].nodes) is there
    loss = vae.objective.loss(vae.model, vae.guide, batch)
    assert math.isfinite(loss)
    assert float(vae.objective.terms["sumofscale"]) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_quick_dropout_drops_the_given_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    dropout, h = QuickDropout(p), torch.ones(1000, 401)
    out = dropout(h)
    n = h.numel()
    assert abs(float((out == 0).float().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)], rel=1e-4)
    assert float(out.mean()) == pytest.approx(1.0, abs=5 * math.sqrt(p / (1 - p) / n))
    rows_differ = (out[:-1] != out[1:]).any(-1)
    assert rows_differ.all()
    assert torch.equal(dropout.eval()(h), h)


def test_quick_dropout_of_all_or_nothing_is_torchs() -> None:
    h = torch.ones(3, 4)
    assert torch.equal(QuickDropout(0.0)(h), h)
    assert torch.equal(QuickDropout(1.0)(h), torch.zeros(3, 4))


def test_training_by_rows_and_by_tensors_takes_the_same_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for fewest in (0, 10**9):
        monkeypatch.setattr(ways, "MIN_ENTRIES", fewest)
        pyro.set_rng_seed(0)
        vae, batch = make_vae(), make_batch()
        pyro.set_rng_seed(1)
        with pyro.validation_enabled(False):
            loss = vae.objective.differentiable_loss(vae.model, vae.guide, batch)
        loss.backward()
        found.append(
            (float(loss.detach()), [p.grad for p in vae.parameters() if p.grad is not None])
        )
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][0] != found[1][0] or any(
        not torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True)
    )
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_validation_of_counts_still_works() -> None:
    with pyro.validation_enabled(True):
        likelihood = ZeroInflatedNegativeBinomial()
        heads, library = decoded(likelihood)
        distribution = likelihood(heads, library)
        with pytest.raises(ValueError, match="support"):
            distribution.log_prob(torch.full((6, 12), -1.0))
    assert isinstance(distribution, dist.Independent)


@pytest.mark.parametrize("likelihood", [ZeroInflatedNegativeBinomial, Poisson])
def test_products_in_bfloat16_give_nearly_the_same_step(likelihood: Any) -> None:
    found = []
    for half in (False, True):
        pyro.set_rng_seed(0)
        vae, batch = make_vae(likelihood=likelihood()), make_batch()
        pyro.set_rng_seed(1)
        with pyro.validation_enabled(False), bfloat16_products(half):
            loss = vae.objective.differentiable_loss(vae.model, vae.guide, batch)
        loss.backward()  # outside: what the backward pass does was settled by the forward pass
        weights = vae.model.likelihood.layers["scale"].weight.grad
        found.append((float(loss.detach()), weights))
    (loss, gradient), (rounded_loss, rounded) = found
    assert rounded_loss == pytest.approx(loss, rel=0.01)
    assert rounded_loss != loss
    assert rounded.dtype == torch.float32
    assert not torch.equal(gradient, rounded)
    error = float((gradient - rounded).norm() / gradient.norm())
    assert 1e-5 < error < 0.05  # 2^-8 is a rounding


def test_train_takes_the_precision_and_refuses_others() -> None:
    adata = simulate(SimulationSettings(40, 40, 30), seed=0)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        pyro.set_rng_seed(0)
        model = ContrastiveVI(adata)
        model.train(max_epochs=2, seed=0, precision=precision, enable_progress_bar=False)
        losses.append(float(model.history["elbo_train"].iloc[-1, 0]))
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert not products_are_half(), "it ends with the training"
    with pytest.raises(ValueError, match="'32-true' or 'bf16-mixed'"):
        model.train(max_epochs=1, precision="16-mixed", enable_progress_bar=False)
