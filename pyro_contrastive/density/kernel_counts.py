"""Non-zero counts of a row of genes, compiled by numba: the formulas of `density.nonzero_counts`.

They are few and are evaluated in double precision: counts up to 15 with a table for every gene, the
others with Stirling's formula.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_contrastive.density.kernel_functions import (
    compiled,
    f4,
    log1p64,
    log1p_minus,
    log32,
    log64,
    sigmoids32,
    stirling_remainder,
    stirling_slope,
    total,
)

N_TABLE = 16  # counts 1 to 15 are looked up
LARGE_LOGIT = f4(80.0)


@compiled
def tables(t: Any) -> Any:
    """Tabulate lgamma(k + t) - lgamma(t) - lgamma(k + 1) and its slope by t, ``[k, genes]``."""
    n_genes = t.size
    value, slope = np.zeros((N_TABLE, n_genes)), np.zeros((N_TABLE, n_genes))
    for k in range(N_TABLE - 1):
        for j in range(n_genes):
            shifted = np.float64(t[j]) + k
            value[k + 1, j] = value[k, j] + log64(shifted / (k + 1))
            slope[k + 1, j] = slope[k, j] + 1.0 / shifted
    return value, slope


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
        found[n] = j  # no branch, which the processor would often predict wrongly
        n += row[j] != 0
    return n


@compiled
def common_terms(c: Any, m: Any, t: Any, value: Any, slope: Any, d_t: Any) -> None:
    """Evaluate the terms that all counts share; the tables add the rest."""
    for k in range(c.size):
        inverse = 1.0 / t[k]
        u = m[k] * inverse
        shrink = 1.0 / (1.0 + u)
        log1p = log1p64(u, shrink)
        value[k] = c[k] * (log64(u) - log1p) - t[k] * log1p
        slope[k] = (c[k] - m[k]) * shrink
        d_t[k] = -log1p - slope[k] * inverse


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
    """Write the slopes of the non-zero counts; return the sum of their values."""
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
def put_not_structural(found: Any, p: Any, d_p: Any) -> float:
    """Write the slopes by the dropout logits of non-zero counts; return the sum of log(1 - pi)."""
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
