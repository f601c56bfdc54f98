"""The compiled functions at single points, against mpmath; where a formula gives way to another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from test_distributions import exact_gradient, exact_log_prob

from pyro_contrastive.density import nonzero_counts, rows

pytest.importorskip("numba")

# Where the series of log1p(y) - y ends, and far from it.
SMALL_Y = [1e-9, 1e-6, 9e-4, 1.1e-3, 0.02, 0.09, 0.5]
Y = [*SMALL_Y, *(-y for y in SMALL_Y), 3.0]
Z = [1e-3, 0.3, 1.0, 2.5, 3.5, 7.0, 9.99, 10.0, 11.0, 50.0, 1e4, 1e8]


@pytest.fixture(autouse=True)
def high_precision() -> Iterator[None]:
    with mpmath.workdps(50):
        yield


def functions() -> Any:
    from pyro_contrastive.density import kernel_functions

    return kernel_functions


def assert_close(found: float, want: Any, relative: float, absolute: float = 0.0) -> None:
    assert abs(found - want) <= relative * abs(want) + absolute, (found, want)


@pytest.mark.parametrize("y", Y)
def test_log1p_minus_has_no_cancellation(y: float) -> None:
    want = mpmath.log1p(mpmath.mpf(y)) - y
    assert_close(functions().log1p_minus(y), want, 1e-12)
    tensor = torch.tensor([y], dtype=torch.float64)
    found = nonzero_counts.log1p_minus(tensor, tensor.log1p() - tensor)
    assert_close(found.item(), want, 1e-12)


@pytest.mark.parametrize("z", Z)
def test_the_rest_of_stirlings_formula(z: float) -> None:
    at = mpmath.mpf(z)
    stirling = (at - 0.5) * mpmath.log(at) - at + mpmath.log(2 * mpmath.pi) / 2
    want, slope = mpmath.loggamma(at) - stirling, mpmath.digamma(at) - mpmath.log(at) + 1 / (2 * at)
    tensor = torch.tensor([z], dtype=torch.float64)
    for found in (
        functions().stirling_remainder(z),
        nonzero_counts._stirling_remainder(tensor).item(),
    ):
        assert_close(found, want, 1e-13, 5e-14)
    for found in (functions().stirling_slope(z), nonzero_counts._stirling_slope(tensor).item()):
        assert_close(found, slope, 1e-13, 5e-14)


@pytest.mark.parametrize("x", [-800.0, -30.0, -1.0, 0.0, 0.5, 30.0, 700.0])
def test_sigmoid_and_softplus(x: float) -> None:
    at = mpmath.mpf(x)
    assert_close(functions().sigmoid64(x), 1 / (1 + mpmath.exp(-at)), 1e-15, 1e-300)
    assert_close(functions().softplus64(x), mpmath.log1p(mpmath.exp(at)), 1e-15, 1e-300)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 40])
def test_the_largest_entry_is_found_wherever_it_is(n: int) -> None:
    a = -1 - np.arange(n, dtype=np.float32)
    for at in range(n):
        there = a.copy()
        there[at] = -0.5
        assert functions().largest(there) == -0.5
        assert functions().total(there) == pytest.approx(float(there.astype(float).sum()), rel=1e-6)


@pytest.mark.parametrize("p", [None, -100.0, -40.0, -1.0, 20.0, 700.0])
@pytest.mark.parametrize("m", [4.5, 40.0, 1e3])
@pytest.mark.parametrize("t", [1e-5, 1e-3, 2.0, 1e4, 1e8])
def test_a_zero_where_the_mean_is_large(m: float, t: float, p: float | None) -> None:
    from pyro_contrastive.density.kernel_zeros import large_zero

    point = (0, m, t) if p is None else (0, m, t, p)
    value, by_log_m, *others = large_zero(m, t, p or 0.0, p is not None)
    assert_close(value, exact_log_prob(*point), 1e-12, 1e-300)
    d_m, *exact = exact_gradient(*point)
    assert_close(by_log_m, m * d_m, 1e-12, 1e-300)
    for found, want in zip(others, exact, strict=False):
        assert_close(found, want, 1e-9, 1e-45)


COUNTS = [0, 1, 2, 14, 15, 16, 1000]
MEANS = [1e-8, 1e-3, 0.5, 3.9, 4.1, 60.0, 1e4]
LOGITS = [None, -100.0, -20.0, -1.0, 3.0, 79.0, 85.0, 100.0]


@pytest.mark.parametrize("t", [1e-3, 0.5, 10.0, 1e4, 1e7])
@pytest.mark.parametrize("p", LOGITS)
def test_every_branch_by_rows(t: float, p: float | None) -> None:
    # Cells of one gene, whose mean is the library size and whose log-probability is not a sum.
    points = list(itertools.product(COUNTS, MEANS))
    x, m = torch.tensor(points, dtype=torch.float32).T.unsqueeze(-1)
    logits = None if p is None else torch.full_like(m, p)
    dispersion = torch.tensor([t])
    found = rows.by_rows(x.contiguous(), torch.zeros_like(m), m.contiguous(), dispersion, logits)
    rounded_t = dispersion.item()
    for i in range(len(points)):
        rest = (x[i].item(), m[i].item(), rounded_t) + ((p,) if p is not None else ())
        assert_close(found.log_prob[i].item(), exact_log_prob(*rest), 5e-6, 2e-6)
        d_m, d_t, *d_p = exact_gradient(*rest)
        assert_close(found.by_log_library[i].item(), d_m * rest[1], 5e-6, 2e-6)
        assert_close(found.by_inverse_dispersion[i].item() * rounded_t, d_t * t, 1e-5, 5e-6)
        if p is not None:
            assert_close(found.by_dropout[i].item(), d_p[0], 5e-6, 2e-6)


@pytest.mark.parametrize("p", [None, -100.0, -1.0])
@pytest.mark.parametrize("n_genes", [15, 16, 64, 70])
@pytest.mark.parametrize("m", [0.01, 3.9, 30.0, 100.0])
def test_zeros_are_multiplied_only_as_long_as_their_product_is_no_underflow(
    p: float | None, n_genes: int, m: float
) -> None:
    genes = torch.ones(1, n_genes)
    logits = None if p is None else p * genes
    t = torch.full((n_genes,), 1e4)
    found = rows.by_rows(0 * genes, 0 * genes, torch.tensor([[m * n_genes]]), t, logits)
    point = (0, m, 1e4) if p is None else (0, m, 1e4, p)
    assert_close(found.log_prob.item(), n_genes * exact_log_prob(*point), 5e-6)
