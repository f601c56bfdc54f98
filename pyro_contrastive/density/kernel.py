"""The decoded density of `density.fused`, row by row, compiled by numba.

The same formulas as in `density.counts`, where they are explained, for single precision and one
inverse dispersion per gene. A row of all genes stays in the core's own cache from the softmax to
the gradient; one after another, the same operations on whole tensors wait for memory.
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
    inlined,
    largest,
    log1p32,
    log1p64,
    log1p_minus,
    log32,
    log64,
    sigmoid64,
    softplus64,
    stirling_remainder,
    stirling_slope,
    total,
)

N_TABLE = 16  # counts 1 to 15 are looked up
LARGE_MEAN = f4(4.0)
N_FACTORS = 16  # exp(-16 LARGE_MEAN) is far from underflow
LIKELY = -0.5  # a zero more likely than not: its log is found from the probability minus one
LARGE_LOGIT = f4(80.0)


@compiled
def tables(t: Any) -> Any:
    """lgamma(k + t) - lgamma(t) - lgamma(k + 1) and its slope by t, each ``[counts, genes]``."""
    n_genes = t.size
    value, slope = np.zeros((N_TABLE, n_genes)), np.zeros((N_TABLE, n_genes))
    for k in range(N_TABLE - 1):
        for j in range(n_genes):
            shifted = np.float64(t[j]) + k
            value[k + 1, j] = value[k, j] + log64(shifted / (k + 1))
            slope[k + 1, j] = slope[k, j] + 1.0 / shifted
    return value, slope


@inlined
def sigmoids32(x: Any) -> Any:
    """1 / (1 + exp(-x)) and 1 / (1 + exp(x)) in single precision."""
    e = exp32(-abs(x))
    larger = f4(1) / (f4(1) + e)
    smaller = e * larger
    return (larger, smaller) if x >= f4(0) else (smaller, larger)


@compiled
def softmax(row: Any, floor: Any) -> None:
    """Turn logits into a point of the simplex, in place."""
    top = largest(row)
    for j in range(row.size):
        row[j] = exp32(row[j] - top)
    scale = f4(1) / total(row)
    for j in range(row.size):
        row[j] = row[j] * scale + floor


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
    """Add structural zeros: values become probabilities, logits `p` the slope by them."""
    for j in range(p.size):
        q, rest = sigmoids32(p[j])
        weight = rest * exp32(value[j])
        value[j] = weight + q
        weight /= value[j]  # that a zero is the negative binomial's
        slope[j] *= weight
        d_t[j] *= weight
        p[j] = f4(1) - (weight + q)


@compiled
def log_of_product(a: Any, products: Any) -> Any:
    """Sum the logarithms of numbers between exp(-LARGE_MEAN) and 1: one for sixteen of them."""
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
def any_count(x: float, m: float, t: float) -> Any:
    """Evaluate a count that is not in the tables: value and slopes by log m and t."""
    whole, excess = x + t, x - m
    y = excess / (t + m)
    log1p = math.log1p(y)
    deviance = x * math.log1p(excess / m * (t / whole)) - t * log1p
    value = -deviance - 0.5 * math.log(2 * math.pi * x * (whole / t))
    value += stirling_remainder(whole) - stirling_remainder(t) - stirling_remainder(x)
    d_t = log1p_minus(y) + 0.5 * x / t / whole + stirling_slope(whole) - stirling_slope(t)
    return value, t * y, d_t


@compiled
def counts_of(row: Any, found: Any) -> int:
    """Find the entries that are not zero; return how many there are."""
    n = 0
    for j in range(row.size):
        found[n] = j  # without a branch, which the processor would guess wrongly
        n += row[j] != 0
    return n


@compiled
def common_terms(c: Any, m: Any, t: Any, value: Any, slope: Any, d_t: Any) -> None:
    """Evaluate what is the same for all counts; the tables add the rest."""
    for k in range(c.size):
        inverse = 1.0 / t[k]
        u = m[k] * inverse
        shrink = 1.0 / (1.0 + u)
        log1p = log1p64(u, shrink)
        value[k] = c[k] * (log64(u) - log1p) - t[k] * log1p
        slope[k] = (c[k] - m[k]) * shrink
        d_t[k] = -log1p - slope[k] * inverse


@compiled
def put_not_structural(found: Any, p: Any, d_p: Any) -> float:
    """Put the slopes of counts, which are no structural zeros; return the sum of the logs."""
    n = found.size
    logit, log, slope = np.empty(n, f4), np.empty(n, f4), np.empty(n, f4)
    for k in range(n):
        logit[k] = p[found[k]]
    for k in range(n):
        _, rest = sigmoids32(logit[k])
        log[k] = log32(rest) if logit[k] < LARGE_LOGIT else -logit[k]
        slope[k] = rest - f4(1)
    for k in range(n):
        d_p[found[k]] = slope[k]
    return total(log)


@compiled
def take_out(m: Any, nothing: Any, value: Any) -> int:
    """Leave out the values where the mean is large; return how many there are."""
    n = 0
    for j in range(m.size):
        is_large = m[j] > LARGE_MEAN
        n += is_large
        value[j] = nothing if is_large else value[j]
    return n


@compiled
def put_large_zeros(row: Any, m: Any, t: Any, p: Any, slope: Any, d_t: Any, d_p: Any) -> float:
    """Put the slopes of zeros where the mean is large in their places; return the sum of values."""
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


@compiled
def put_counts(
    found: Any,
    row: Any,
    m: Any,
    t: Any,
    table: Any,
    table_slope: Any,
    slope: Any,
    d_t: Any,
) -> float:
    """Put the slopes at the counts that are not zero in their places; return the sum of values."""
    n = found.size
    c, mean, theta = np.empty(n), np.empty(n), np.empty(n)
    value, by_mean, by_t = np.empty(n), np.empty(n), np.empty(n)
    for k in range(n):
        j = found[k]
        c[k], mean[k], theta[k] = row[j], m[j], t[j]
    common_terms(c, mean, theta, value, by_mean, by_t)
    n_others = 0
    for k in range(n):
        j = found[k]
        small = int(c[k]) if 0 < c[k] < N_TABLE else 0
        value[k] += table[small, j]
        d_t[j], slope[j] = by_t[k] + table_slope[small, j], by_mean[k]
        n_others += small != c[k]
    if n_others > 0:
        for k in range(n):
            if not (0 < c[k] < N_TABLE and int(c[k]) == c[k]):
                j = found[k]
                value[k], slope[j], d_t[j] = any_count(c[k], mean[k], theta[k])
    return total(value)


@compiled
def count_rows(
    counts: Any,
    rho: Any,
    logits: Any,
    library: Any,
    t: Any,
    table: Any,
    table_slope: Any,
    floor: Any,
    d_t: Any,
    log_prob: Any,
    by_library: Any,
) -> None:
    """Evaluate cells: log-probabilities and slopes.

    Parameters
    ----------
    counts
        ``[cells, genes]``.
    rho
        Logits of the scale; become the slopes by them.
    logits
        Logits of a structural zero; become the slopes by them. Without columns: none.
    library, t
        ``[cells]`` and ``[genes]``.
    table, table_slope
        Of :func:`tables`.
    floor
        Added to the softmax.
    d_t, log_prob, by_library
        To be filled: slopes by t, ``[cells, genes]``; values and slopes by log library,
        ``[cells]``.
    """
    n_cells, n_genes = counts.shape
    inflated = logits.shape[1] > 0
    m, value, slope = np.empty(n_genes, f4), np.empty(n_genes, f4), np.empty(n_genes, f4)
    p, products = np.empty(n_genes, f4), np.empty(n_genes, f4)
    found = np.empty(n_genes + 1, np.int64)
    nothing = f4(inflated)  # probabilities are multiplied, their logarithms added
    for i in range(n_cells):
        if not (math.isfinite(total(rho[i])) and math.isfinite(total(logits[i]))):
            rho[i], logits[i], d_t[i] = np.nan, np.nan, np.nan
            log_prob[i], by_library[i] = np.nan, np.nan
            continue
        softmax(rho[i], floor)
        for j in range(n_genes):
            m[j] = library[i] * rho[i, j]
        zeros(m, t, value, slope, d_t[i])
        if inflated:
            p[:] = logits[i]
            inflate(logits[i], value, slope, d_t[i])
        others = 0.0
        if take_out(m, nothing, value):
            others += put_large_zeros(counts[i], m, t, p, slope, d_t[i], logits[i])
        at = found[: counts_of(counts[i], found)]
        for k in range(at.size):
            value[at[k]] = nothing
        others += put_counts(at, counts[i], m, t, table, table_slope, slope, d_t[i])
        if inflated:
            others += put_not_structural(at, p, logits[i])
        others += log_of_product(value, products) if inflated else total(value)
        by_library[i] = total(slope)
        # A slope that is no number makes a value that is none.
        log_prob[i] = others + 0 * by_library[i]
        for j in range(n_genes):
            rho[i, j] = slope[j] - rho[i, j] * by_library[i]


def compile_all() -> None:
    """Compile the functions for the types they are called with: evaluate a cell of one gene."""

    def ones(*shape: int) -> Any:
        return np.ones(shape, f4)

    t = ones(1)
    cell = ones(1, 1), ones(1, 1), ones(1, 0), ones(1)
    count_rows(*cell, t, *tables(t), f4(0), ones(1, 1), ones(1), ones(1))
