"""Count distributions against mpmath, scipy and closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import mpmath
import numpy as np
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from pyro.distributions import TorchDistribution
from scipy import special, stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_contrastive.density.counts import _count_terms
from pyro_contrastive.density.distributions import (
    NegativeBinomialDistribution,
    ZeroInflatedNegativeBinomialDistribution,
)

DTYPES = [torch.float32, torch.float64]
# Of the value, and of the gradient times the parameter: either may be met.
VALUE_TOLERANCE = {torch.float32: (1e-6, 5e-6), torch.float64: (1e-14, 1e-11)}
GRADIENT_TOLERANCE = {torch.float32: (1e-6, 1e-5), torch.float64: (1e-11, 1e-11)}

MEANS = [1e-8, 1e-3, 0.5, 7.5, 300.0, 1e5]
INVERSE_DISPERSIONS = [1e-3, 0.5, 9.9, 10.0, 1e4, 1e7, 1e8]
COUNTS = [0, 1, 2, 9, 10, 1000, 99_000, 100_000]
LOGITS = [-60.0, -21.0, -2.0, 0.0, 3.0, 21.0, 60.0]  # torch's softplus is rough above 20


@pytest.fixture(autouse=True)
def high_precision() -> Iterator[None]:
    # Outside the tests' control, any library may lower it: sympy does.
    with mpmath.workdps(50):
        yield


def make(parameters: Sequence[Tensor], validate_args: bool | None = None) -> TorchDistribution:
    kind = (
        NegativeBinomialDistribution
        if len(parameters) == 2
        else ZeroInflatedNegativeBinomialDistribution
    )
    return kind(*parameters, validate_args=validate_args)


def exact_log_prob(x: float, m: float, t: float, p: float | None = None) -> mpmath.mpf:
    """The definition, at 50 digits."""
    zero = -t * mpmath.log1p(mpmath.mpf(m) / t)
    log_prob = zero
    if x:
        log_prob += x * mpmath.log(mpmath.mpf(m) / (mpmath.mpf(t) + m)) - mpmath.loggamma(x + 1)
        log_prob += mpmath.loggamma(mpmath.mpf(x) + t) - mpmath.loggamma(t)
    if p is None:
        return log_prob
    dropped, kept = (1 / (1 + mpmath.exp(sign * mpmath.mpf(p))) for sign in (-1, 1))
    if x:
        return mpmath.log(kept) + log_prob
    return mpmath.log(dropped + kept * mpmath.exp(zero))


def exact_gradient(x: float, m: float, t: float, p: float | None = None) -> list[mpmath.mpf]:
    m, t = mpmath.mpf(m), mpmath.mpf(t)
    d_m = x / m - (x + t) / (t + m)
    d_t = mpmath.digamma(x + t) - mpmath.digamma(t) - mpmath.log1p(m / t) + (m - x) / (t + m)
    if p is None:
        return [d_m, d_t]
    dropped, kept = (1 / (1 + mpmath.exp(sign * mpmath.mpf(p))) for sign in (-1, 1))
    if x:
        return [d_m, d_t, -dropped]
    not_dropped = kept * mpmath.exp(-t * mpmath.log1p(m / t))
    weight = not_dropped / (dropped + not_dropped)
    return [weight * d_m, weight * d_t, kept - weight]


def check(x: int, parameters: Sequence[float], dtype: torch.dtype) -> None:
    """Compare value and gradient at one point."""
    check_all([(x, *parameters)], dtype)


def check_all(points: Sequence[Sequence[float]], dtype: torch.dtype) -> None:
    columns = torch.tensor(points, dtype=dtype).unbind(1)
    parameters = [column.clone().requires_grad_() for column in columns[1:]]
    log_prob = make(parameters).log_prob(columns[0])
    gradients = torch.autograd.grad(log_prob.sum(), parameters)
    for i in range(len(points)):
        # What the parameters are after rounding to dtype.
        rounded = [column[i].item() for column in columns]
        want = exact_log_prob(*rounded)
        assert agrees(log_prob[i].item(), want, *VALUE_TOLERANCE[dtype]), (rounded, want)
        for k, slope in enumerate(exact_gradient(*rounded)):
            scale = abs(rounded[k + 1]) if k < 2 else 1  # logits are on the log scale already
            got = mpmath.mpf(gradients[k][i].item())
            tolerance = GRADIENT_TOLERANCE[dtype]
            assert agrees(got * scale, slope * scale, *tolerance), (rounded, k, got, slope)


def agrees(got: float, want: mpmath.mpf, absolute: float, relative: float) -> bool:
    # NaN compares false.
    return bool(abs(got - want) <= max(absolute, relative * abs(want)))


def scipy_log_prob(
    x: ArrayLike, m: ArrayLike, t: ArrayLike, p: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Good to about 1e-10 at moderate parameters, and vectorised."""
    x, m, t = (np.asarray(a, dtype=np.float64) for a in (x, m, t))
    log_prob = stats.nbinom.logpmf(x, t, t / (t + m))
    if p is None:
        return log_prob
    p = np.asarray(p, dtype=np.float64)
    log_dropped = np.where(x == 0, special.log_expit(p), -np.inf)
    return np.logaddexp(log_dropped, special.log_expit(-p) + log_prob)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_negative_binomial_grid(dtype: torch.dtype) -> None:
    check_all(list(itertools.product(COUNTS, MEANS, INVERSE_DISPERSIONS)), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_of_a_mean_where_the_short_formulas_would_round_too_much(dtype: torch.dtype) -> None:
    check_all(list(itertools.product([0], [5.0, 60.0], INVERSE_DISPERSIONS)), dtype)
    check_all(list(itertools.product([0], [5.0, 60.0, 100.0], [1e3, 1e7], LOGITS)), dtype)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_inflated_grid(dtype: torch.dtype) -> None:
    counts = [0, 1, 100_000]
    check_all(list(itertools.product(counts, MEANS, INVERSE_DISPERSIONS, LOGITS)), dtype)


def powers_of_ten(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


POINTS = {
    "x": st.one_of(st.just(0), powers_of_ten(0, 5).map(round)),
    "m": powers_of_ten(-8, 5),
    "t": powers_of_ten(-3, 8),
}


@settings(max_examples=150, deadline=None)
@given(dtype=st.sampled_from(DTYPES), **POINTS)
def test_negative_binomial_anywhere(x: int, m: float, t: float, dtype: torch.dtype) -> None:
    with mpmath.workdps(50):
        check(x, (m, t), dtype)


@settings(max_examples=150, deadline=None)
@given(p=st.floats(-60, 60), dtype=st.sampled_from(DTYPES), **POINTS)
def test_zero_inflated_anywhere(x: int, m: float, t: float, p: float, dtype: torch.dtype) -> None:
    with mpmath.workdps(50):
        check(x, (m, t, p), dtype)


@settings(max_examples=100, deadline=None)
@given(m=powers_of_ten(3, 5), t=powers_of_ten(-3, 8), sigmas=st.floats(-6, 6))
def test_counts_near_their_mean(m: float, t: float, sigmas: float) -> None:
    # Here the terms of the log-density are largest against their sum.
    x = max(round(m + sigmas * math.sqrt(m + m * m / t)), 0)
    with mpmath.workdps(50):
        check(x, (m, t), torch.float32)
        check(x, (m, t), torch.float64)


@pytest.mark.parametrize("point", [(0, 2.0, 3.0, -1.0), (4, 2.0, 3.0, -1.0), (7, 0.1, 40.0, 2.0)])
def test_reference_gradient_is_the_derivative(point: tuple[float, ...]) -> None:
    x, *parameters = point
    for k, slope in enumerate(exact_gradient(*point)):
        order = tuple(int(i == k) for i in range(3))
        numeric = mpmath.diff(lambda m, t, p: exact_log_prob(x, m, t, p), parameters, order)
        assert mpmath.almosteq(slope, numeric, 1e-15)


def test_large_inverse_dispersion_where_the_usual_formula_fails() -> None:
    x, m, t = (torch.tensor(a) for a in (30.0, 20.0, 1e7))
    want = float(exact_log_prob(30, 20.0, 1e7))
    # As reference implementations write it, in float32.
    eps = 1e-8
    log_theta_mu = (t + m + eps).log()
    usual = (
        t * ((t + eps).log() - log_theta_mu)
        + x * ((m + eps).log() - log_theta_mu)
        + (x + t).lgamma()
        - t.lgamma()
        - (x + 1).lgamma()
    )
    assert abs(usual.item() - want) > 1
    assert NegativeBinomialDistribution(m, t).log_prob(x).item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("m", [0.2, 6.0])
@pytest.mark.parametrize("t", [0.4, 5.0, 1e6])
def test_density_sums_to_one(m: float, t: float) -> None:
    x = torch.arange(2000.0, dtype=torch.float64)
    for p in (None, -3.0, 1.5):
        parameters = [torch.tensor(a, dtype=torch.float64) for a in (m, t, p) if a is not None]
        assert make(parameters).log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-10)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mean_of_zero(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 3.0], dtype=dtype)
    m = torch.zeros(2, dtype=dtype, requires_grad=True)
    t = torch.tensor([1e-3, 2.0], dtype=dtype, requires_grad=True)
    p = torch.tensor([-4.0, 1.0], dtype=dtype, requires_grad=True)
    for parameters in ([m, t], [m, t, p]):
        log_prob = make(parameters).log_prob(x)
        assert log_prob.tolist() == [0, -math.inf]
        gradients = torch.autograd.grad(log_prob[0], parameters)
        assert all(gradient.isfinite().all() for gradient in gradients)
        kept = 1 if len(parameters) == 2 else special.expit(4)
        assert gradients[0].tolist() == pytest.approx([-kept, 0], rel=1e-6)
        assert gradients[1].tolist() == [0, 0]
        assert not make(parameters).sample((5,)).any()
        assert make(parameters).variance.tolist() == [0, 0]


@pytest.mark.parametrize("p", [None, -1.5])
def test_second_derivative_at_a_mean_of_zero(p: float | None) -> None:
    # With A = -t log1p(m / t), whose derivatives at 0 are -1 and 1 / t, and k = sigmoid(-p), the
    # log-probability of a zero, log(1 - k + k exp(A)), has the derivatives below.
    m = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.5, 4.0], dtype=torch.float64)
    parameters = [m, t] if p is None else [m, t, torch.tensor(p, dtype=torch.float64)]
    log_prob = make(parameters).log_prob(torch.zeros(2, dtype=torch.float64))
    (first,) = torch.autograd.grad(log_prob.sum(), m, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), m)
    kept = 1.0 if p is None else special.expit(-p)
    np.testing.assert_allclose(first.detach(), [-kept, -kept], rtol=1e-12)
    np.testing.assert_allclose(second, kept * (1 / t + 1) - kept**2, rtol=1e-12)


@pytest.mark.usefixtures("each_way")
def test_gradient_where_the_mean_is_zero_and_the_count_is_not() -> None:
    m = torch.zeros((), requires_grad=True)
    t = torch.tensor(2.0, requires_grad=True)
    gradients = torch.autograd.grad(
        NegativeBinomialDistribution(m, t).log_prob(torch.tensor(3.0)), [m, t]
    )
    assert gradients[0].item() > 1e30
    assert gradients[1].isfinite()


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("zero_inflated", [False, True])
def test_numerical_derivatives(zero_inflated: bool) -> None:
    x = torch.tensor([[0.0, 1.0, 12.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    m = (torch.rand(2, 3, dtype=torch.float64) * 5 + 0.2).requires_grad_()
    t = torch.tensor([0.3, 4.0, 25.0], dtype=torch.float64, requires_grad=True)  # per gene
    p = torch.tensor([[-1.0], [2.0]], dtype=torch.float64, requires_grad=True)  # per cell
    parameters = (m, t, p) if zero_inflated else (m, t)

    def log_prob(*args: Tensor) -> Tensor:
        return make(args).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, parameters)
    assert torch.autograd.gradgradcheck(log_prob, parameters)


@pytest.mark.parametrize(
    "point", [(0, 2.0, 3.0), (4, 2.0, 3.0), (0, 2.0, 3.0, -1.0), (4, 2.0, 3.0, -1.0)]
)
def test_a_gradient_to_be_differentiated_is_the_gradient(point: tuple[float, ...]) -> None:
    # It is that of another formula. gradgradcheck takes this one too, and sees no difference.
    x, *parameters = (torch.tensor(a, dtype=torch.float64) for a in point)
    for parameter in parameters:
        parameter.requires_grad_()
    log_prob = make(parameters).log_prob(x)
    first = torch.autograd.grad(log_prob, parameters, create_graph=True)
    np.testing.assert_allclose(
        [float(a.detach()) for a in first],
        np.array(exact_gradient(*point), dtype=float),
        rtol=1e-12,
    )
    order = [2, 0, 0][: len(parameters)]
    second = torch.autograd.grad(first[0], parameters[0])[0].item()
    exact = mpmath.diff(lambda *at: exact_log_prob(point[0], *at), point[1:], tuple(order))
    assert second == pytest.approx(float(exact), rel=1e-10)


@pytest.mark.usefixtures("each_way")
def test_some_parameters_without_gradient() -> None:
    x = torch.tensor([0.0, 2.0])
    m, t, p = torch.tensor([1.0, 2.0]), torch.tensor(3.0, requires_grad=True), torch.zeros(2)
    for parameters in ([m, t], [m, t, p]):
        (gradient,) = torch.autograd.grad(make(parameters).log_prob(x).sum(), t)
        exact = [
            exact_gradient(*row)[1] for row in zip(x.tolist(), *expanded(parameters), strict=True)
        ]
        assert gradient.item() == pytest.approx(float(sum(exact)), rel=1e-5)
        with torch.no_grad():
            assert not make(parameters).log_prob(x).requires_grad


def expanded(parameters: Sequence[Tensor]) -> list[list[float]]:
    return [a.detach().expand(2).tolist() for a in parameters]


SHAPES = {
    "per gene": ((4, 3), (4, 3), (3,), (4, 3)),
    "per gene and cell": ((4, 3), (4, 3), (4, 3), (4, 3)),
    "particles": ((4, 3), (2, 4, 3), (3,), (2, 4, 3)),
    "particles, shared dispersion": ((4, 3), (2, 1, 3), (2, 1, 1), (4, 1)),
    "samples": ((5, 4, 3), (4, 3), (3,), (4, 3)),
    "batch wider than counts": ((3,), (4, 1), (), (4, 1)),
    "scalars": ((), (), (), ()),
    "one cell": ((1, 3), (1, 3), (3,), (1, 3)),
    "no cells": ((0, 3), (0, 3), (3,), (0, 3)),
    "all parameters scalar": ((4, 3), (), (), ()),
}


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("zero_inflated", [False, True])
def test_broadcasting(shapes: tuple[tuple[int, ...], ...], zero_inflated: bool) -> None:
    x = torch.poisson(torch.full(shapes[0], 1.0))
    m = torch.rand(shapes[1]) * 4 + 0.1
    t = torch.rand(shapes[2]) * 9 + 0.2
    parameters = [m, t] + zero_inflated * [torch.randn(shapes[3])]
    for parameter in parameters:
        parameter.requires_grad_()
    distribution = make(parameters)
    assert distribution.batch_shape == torch.broadcast_shapes(*(a.shape for a in parameters))
    assert distribution.event_shape == ()
    arrays = [a.detach().double().numpy() for a in (x, *parameters)]
    log_prob = distribution.log_prob(x)
    assert log_prob.dtype == torch.float32
    want = scipy_log_prob(*arrays)
    assert log_prob.shape == want.shape
    np.testing.assert_allclose(log_prob.detach(), want, rtol=1e-5, atol=1e-6)
    for parameter, array in zip(parameters, central_differences(arrays), strict=True):
        (gradient,) = torch.autograd.grad(log_prob.sum(), parameter, retain_graph=True)
        np.testing.assert_allclose(gradient, array, rtol=1e-4, atol=1e-4)


def central_differences(arrays: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Gradient of the summed log-density with respect to each parameter."""
    gradients = []
    for k in range(1, len(arrays)):
        gradient = np.zeros(arrays[k].shape)
        for index in np.ndindex(arrays[k].shape):
            sums = []
            for step in (1e-5, -1e-5):
                moved = [array.copy() for array in arrays]
                moved[k][index] += step
                sums.append(scipy_log_prob(*moved).sum())
            gradient[index] = (sums[0] - sums[1]) / 2e-5
        gradients.append(gradient)
    return gradients


@pytest.mark.usefixtures("each_way")
def test_memory_layout_does_not_matter() -> None:
    x = torch.poisson(torch.ones(3, 4)).T  # [cells, genes], as are the others
    m = torch.rand(3, 4).T + 0.1
    t = torch.rand(3, 4).T + 0.5
    p = torch.randn(3, 4, 2)[..., 0].T
    want = scipy_log_prob(x, m, t, p)
    for parameters in itertools.product((m, m.contiguous()), (t, t.contiguous()), (p, p.clone())):
        for counts in (x, x.contiguous()):
            got = ZeroInflatedNegativeBinomialDistribution(*parameters).log_prob(counts)
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float64])
def test_dtype_of_counts(dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1, 5], dtype=dtype)
    log_prob = NegativeBinomialDistribution(torch.tensor(2.0), torch.tensor(3.0)).log_prob(x)
    assert log_prob.dtype == torch.float32
    np.testing.assert_allclose(log_prob, scipy_log_prob(x, 2.0, 3.0), rtol=1e-6)


def test_parameters_may_be_numbers_and_of_mixed_dtype() -> None:
    assert NegativeBinomialDistribution(2, 3.0).log_prob(torch.tensor(1)).dtype == torch.float32
    mixed = ZeroInflatedNegativeBinomialDistribution(
        torch.tensor([2.0]).double(), torch.tensor(3.0), 0
    )
    assert mixed.rate.dtype == mixed.inverse_dispersion.dtype == mixed.zi_logits.dtype
    assert mixed.log_prob(torch.tensor([1])).dtype == torch.float64


def test_no_lgamma_per_zero() -> None:
    special_elements = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self,
            func: Callable[..., object],
            types: object,
            args: tuple = (),
            kwargs: object = None,
        ) -> object:
            if any(name in str(func) for name in ("lgamma", "digamma")):
                special_elements.append(args[0].numel())
            return func(*args, **(kwargs or {}))

    x = (torch.rand(100, 50) < 0.05).float()
    n_nonzero, n_genes = int(x.sum()), 50
    for t in (torch.rand(50) + 0.1, torch.rand(100, 50) + 0.1):
        with Count():  # value and gradient; as an operator it would be one call to torch
            _count_terms(x, torch.rand(100, 50), t, torch.zeros(100, 50))
        assert max(special_elements) <= max(n_nonzero, n_genes)
        assert sum(special_elements) <= 5 * n_nonzero + 2 * n_genes
        special_elements.clear()


def exact_moments(m: float, t: float, p: float | None) -> tuple[float, float, float, float]:
    """Mean, variance, fourth central moment and zero probability, by summing the density."""
    x = np.arange(60_000)
    density = np.exp(scipy_log_prob(x, m, t, p))
    mean = (x * density).sum()
    second, fourth = (((x - mean) ** k * density).sum() for k in (2, 4))
    return mean, second, fourth, density[0]


@pytest.mark.parametrize("m", [0.3, 40.0])
@pytest.mark.parametrize("t", [0.1, 2.0, 1e8])
@pytest.mark.parametrize("p", [None, -1.0, 2.0])
def test_moments_of_samples(m: float, t: float, p: float | None) -> None:
    n = 50_000
    distribution = make([torch.tensor(a) for a in (m, t, p) if a is not None])
    mean, variance, fourth, zero = exact_moments(m, t, p)
    assert distribution.mean.item() == pytest.approx(mean, rel=1e-5)
    assert distribution.variance.item() == pytest.approx(variance, rel=1e-5)
    sample = distribution.sample((n,)).double()
    standard_errors = 4.5
    assert abs(sample.mean() - mean) < standard_errors * math.sqrt(variance / n)
    assert abs(sample.var() - variance) < standard_errors * math.sqrt((fourth - variance**2) / n)
    fraction = (sample == 0).double().mean()
    assert abs(fraction - zero) < standard_errors * math.sqrt(zero * (1 - zero) / n) + 1e-12


@pytest.mark.parametrize("m", [5e3, 1e6, 1e12])
@pytest.mark.parametrize("t", [2.0, 1e4])
def test_samples_of_large_means_are_not_clipped(m: float, t: float) -> None:
    n, variance = 20_000, m + m * m / t
    mean, dispersion = (torch.tensor(a, dtype=torch.float64) for a in (m, t))
    sample = NegativeBinomialDistribution(mean, dispersion).sample((n,))
    assert abs(sample.mean().item() - m) < 4.5 * math.sqrt(variance / n)
    # The quantiles too, among them one far above the mean; their standard errors are scipy's.
    for q in (0.1, 0.5, 0.99):
        exact = stats.nbinom.ppf(q, t, t / (t + m))
        below = (sample <= exact).double().mean().item()
        assert abs(below - q) < 4.5 * math.sqrt(q * (1 - q) / n) + stats.nbinom.pmf(
            exact, t, t / (t + m)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_at_the_extremes(dtype: torch.dtype) -> None:
    m = torch.tensor([0.0, 1e-8, 1.0, 1e5, 1e30], dtype=dtype)[:, None]
    t = torch.tensor([1e-30, 1e-3, 1.0, 1e8, 1e30], dtype=dtype)
    for parameters in ([m, t], [m, t, torch.tensor(-2.0, dtype=dtype)]):
        sample = make(parameters).sample((200,))
        assert sample.dtype == dtype
        assert sample.shape == (200, 5, 5)
        assert sample.isfinite().all()
        assert (sample >= 0).all()
        assert torch.equal(sample, sample.round())
        assert not sample[:, 0].any()


def test_tiny_inverse_dispersion_gives_its_share_of_zeros() -> None:
    n = 100_000
    zero = float(mpmath.exp(exact_log_prob(0, 100.0, 1e-2)))
    sample = NegativeBinomialDistribution(torch.tensor(100.0), torch.tensor(1e-2)).sample((n,))
    fraction = (sample == 0).double().mean().item()
    assert abs(fraction - zero) < 4.5 * math.sqrt(zero * (1 - zero) / n)


def test_samples_follow_the_seed_and_carry_no_gradient() -> None:
    m = torch.full((20,), 5.0, requires_grad=True)
    distribution = ZeroInflatedNegativeBinomialDistribution(m, torch.tensor(2.0), torch.tensor(0.0))
    draws = []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        draws.append(distribution.sample())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not draws[0].requires_grad
    assert not distribution.has_rsample


@pytest.mark.parametrize("zero_inflated", [False, True])
def test_expand_and_to_event(zero_inflated: bool) -> None:
    m, t, p = torch.rand(4, 3) + 0.1, torch.rand(3) + 0.5, torch.randn(4, 3)
    parameters = [m, t, p] if zero_inflated else [m, t]
    distribution = make(parameters)
    wide = distribution.expand((2, 4, 3))
    assert type(wide) is type(distribution)
    assert wide.batch_shape == (2, 4, 3)
    assert wide.mean.shape == wide.variance.shape == wide.sample().shape == (2, 4, 3)
    assert distribution.expand_by((5,)).batch_shape == (5, 4, 3)
    event = distribution.to_event(1)
    assert (event.batch_shape, event.event_shape) == ((4,), (3,))
    assert event.expand((2, 4)).sample((6,)).shape == (6, 2, 4, 3)
    x = torch.poisson(torch.ones(4, 3))
    want = scipy_log_prob(x, *parameters)
    np.testing.assert_allclose(event.log_prob(x), want.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(wide.log_prob(x), np.broadcast_to(want, (2, 4, 3)), rtol=1e-5)
    for shape in [(5, 3), (3,)]:
        with pytest.raises(RuntimeError):
            distribution.expand(shape)


def test_expand_keeps_validation() -> None:
    for validate_args in (True, False):
        distribution = NegativeBinomialDistribution(
            torch.ones(3), torch.ones(3), validate_args=validate_args
        )
        assert distribution.expand((2, 3))._validate_args is validate_args


def test_names() -> None:
    m, t, p = torch.tensor([2.0, 4.0]), torch.tensor(3.0), torch.tensor(1.0)
    distribution = ZeroInflatedNegativeBinomialDistribution(
        mean=m, inverse_dispersion=t, zi_logits=p
    )
    assert torch.equal(distribution.rate, m)
    probability = special.expit(1.0)
    np.testing.assert_allclose(distribution.zi_probs, [probability] * 2, rtol=1e-6)
    np.testing.assert_allclose(distribution.mean, (1 - probability) * m, rtol=1e-6)
    assert torch.equal(NegativeBinomialDistribution(mean=m, inverse_dispersion=t).mean, m)
    shapes = {"mean": (4, 3), "inverse_dispersion": (3,), "zi_logits": (4, 3)}
    assert ZeroInflatedNegativeBinomialDistribution.infer_shapes(**shapes) == ((4, 3), ())


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ((-1.0, 1.0), "rate"),
        ((math.nan, 1.0), "rate"),
        ((1.0, 0.0), "inverse_dispersion"),
        ((1.0, -1.0), "inverse_dispersion"),
        ((-1.0, 1.0, 0.0), "rate"),
        ((1.0, 0.0, 0.0), "inverse_dispersion"),
        ((1.0, 1.0, math.nan), "zi_logits"),
    ],
)
def test_bad_parameters_are_refused(parameters: tuple[float, ...], name: str) -> None:
    tensors = [torch.tensor(a) for a in parameters]
    with pytest.raises(ValueError, match=f"Expected parameter {name}"):
        make(tensors, validate_args=True)
    make(tensors, validate_args=False)


@pytest.mark.parametrize("value", [-1.0, 0.5, math.nan])
@pytest.mark.parametrize("zero_inflated", [False, True])
def test_bad_counts_are_refused(value: float, zero_inflated: bool) -> None:
    parameters = [torch.ones(2), torch.ones(2)] + zero_inflated * [torch.zeros(2)]
    counts = torch.tensor([0.0, value])
    with pytest.raises(ValueError, match="within the support"):
        make(parameters, validate_args=True).log_prob(counts)
    unchecked = make(parameters, validate_args=False).log_prob(counts)
    assert unchecked[0].isfinite()
    assert bool(unchecked[1].isfinite()) == (value == 0.5)


def test_counts_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="broadcastable"):
        NegativeBinomialDistribution(torch.ones(2), torch.ones(2), validate_args=True).log_prob(
            torch.ones(3)
        )


def test_in_a_pyro_model() -> None:
    x = torch.poisson(torch.ones(4, 3))
    m, t, p = torch.rand(4, 3) + 0.1, torch.rand(3) + 0.5, torch.randn(4, 3)

    def model(counts: Tensor | None) -> Tensor:
        with pyro.plate("cells", 4):
            likelihood = ZeroInflatedNegativeBinomialDistribution(m, t, p).to_event(1)
            return pyro.sample("x", likelihood, obs=counts)

    trace = pyro.poutine.trace(model).get_trace(x)
    assert trace.log_prob_sum().item() == pytest.approx(scipy_log_prob(x, m, t, p).sum(), rel=1e-5)
    assert model(None).shape == (4, 3)
