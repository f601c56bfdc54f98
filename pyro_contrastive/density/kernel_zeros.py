"""Zero counts of a row of genes, compiled by numba: the formulas of `density.counts`.

A zero needs no gamma function, so that every gene is first evaluated as if its count were zero, in
single precision. Non-zero counts, and zeros where the mean is large, then replace these values.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_contrastive.density.kernel_functions import (
    SMALL,
    compiled,
    exp32,
    f4,
    log1p32,
    log1p_minus,
    log32,
    sigmoid64,
    sigmoids32,
    softplus64,
    total,
)

LARGE_MEAN = f4(4.0)
N_FACTORS = 16  # exp(-16 LARGE_MEAN) is far from underflow
LIKELY = -0.5  # a zero more likely than not: its log is found from the probability minus one


@compiled
def zeros(m: Any, t: Any, value: Any, slope: Any, d_t: Any) -> None:
    """Evaluate a zero of the negative binomial for each gene; ``slope`` is by log m."""
    for j in range(m.size):
        u = m[j] / t[j]
        shrink = f4(1) / (f4(1) + u)
        log1p = log1p32(u, shrink)
        value[j] = -t[j] * log1p
        slope[j] = -m[j] * shrink
        d_t[j] = u * shrink - log1p


@compiled
def inflate(p: Any, value: Any, slope: Any, d_t: Any) -> None:
    """Add structural zeros: values become probabilities, and logits `p` the slopes by them."""
    for j in range(p.size):
        q, rest = sigmoids32(p[j])
        weight = rest * exp32(value[j])
        value[j] = weight + q
        weight /= value[j]  # probability that a zero comes from the negative binomial
        slope[j] *= weight
        d_t[j] *= weight
        p[j] = f4(1) - (weight + q)


@compiled
def log_of_product(a: Any, products: Any) -> Any:
    """Sum logarithms of numbers between exp(-LARGE_MEAN) and 1, taking one per sixteen numbers.

    Numbers are multiplied by sixteens first, since a product costs much less than a logarithm.
    """
    n = a.size // N_FACTORS
    products[:n] = a[:n]
    for i in range(1, N_FACTORS):
        for j in range(n):
            products[j] *= a[i * n + j]
    for j in range(n):
        products[j] = log32(products[j])
    found = total(products[:n])
    for j in range(N_FACTORS * n, a.size):
        found += log32(a[j])
    return found


@compiled
def large_zero(m: float, t: float, p: float, inflated: bool) -> Any:
    """Evaluate a zero where the mean is large: value and slopes by log m, t and p."""
    y = m / t
    log1p = math.log1p(y)
    shrink = 1 / (1 + y)
    a = -t * log1p
    slope, d_t = -m * shrink, log1p_minus(-y * shrink)
    if abs(y * shrink) >= SMALL:
        d_t = y * shrink - log1p
    if not inflated:
        return a, slope, d_t, 0.0
    shortfall = math.expm1(a) * sigmoid64(-p)
    value = math.log1p(shortfall) if shortfall > LIKELY else softplus64(a - p) - softplus64(-p)
    weight = sigmoid64(a - p)
    return value, slope * weight, d_t * weight, -sigmoid64(p - a) * shortfall


@compiled
def take_out(m: Any, nothing: Any, value: Any) -> int:
    """Replace the values by `nothing` where the mean is large; return how many there are."""
    n = 0
    for j in range(m.size):
        is_large = m[j] > LARGE_MEAN
        n += is_large
        value[j] = nothing if is_large else value[j]
    return n


@compiled
def put_large_zeros(row: Any, m: Any, t: Any, p: Any, slope: Any, d_t: Any, d_p: Any) -> float:
    """Write the slopes of zeros where the mean is large; return the sum of their values."""
    inflated = d_p.size > 0
    value = 0.0
    for j in range(row.size):
        if m[j] > LARGE_MEAN and row[j] == 0:
            logit = np.float64(p[j]) if inflated else 0.0
            found = large_zero(np.float64(m[j]), np.float64(t[j]), logit, inflated)
            value += found[0]
            slope[j], d_t[j] = found[1], found[2]
            if inflated:
                d_p[j] = found[3]
    return value
