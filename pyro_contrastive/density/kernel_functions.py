"""Functions of one number, compiled by numba so that loops over them use vector instructions.

A compiler turns arithmetic into vector instructions, but not calls to a C library. So exponential
and logarithm are written out: the argument is reduced by powers of two, and the rest goes into a
power series that stops where its remainder is below the rounding of the type (relative error of the
single precision functions: 2e-7). NaN stays NaN. Arguments of logarithms must be positive.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from pyro_contrastive.density.code_cache import forgiving

f4, i4, i8 = np.float32, np.int32, np.int64
# Division by zero gives infinity as in NumPy. Python's error would need a branch in every loop.
inlined = njit(error_model="numpy", nogil=True)
_compiled = njit(error_model="numpy", nogil=True, cache=True)
_reordered = njit(error_model="numpy", nogil=True, cache=True, fastmath={"reassoc", "nsz"})


def compiled(function: Any) -> Any:
    """Compile a function and keep the code in numba's cache."""
    return forgiving(_compiled(function))


def reordered(function: Any) -> Any:
    """Compile a function that may sum in any order, so that sums use vector instructions too."""
    return forgiving(_reordered(function))


N_LANES = 16
_LOG2_E = f4(1 / math.log(2))
# log 2 as a number with few digits, whose products with small integers are exact, plus the rest.
_LOG_2 = f4(355 / 512)
_LOG_2_REST = f4(math.log(2) - 355 / 512)
_LOG_2_DOUBLE = math.log(2)
# Exponent bits of 1, and the bits of sqrt(1/2): below it a number belongs to the next lower power.
_ONE, _ROOT = i4(127), i4(0x3F3504F3)
_ROOT_DOUBLE = i8(0x3FE6A09E667F3BCD)
SERIES_FROM = 10.0  # from here on Stirling's series is accurate to 2e-14
SMALL = 1e-3  # up to it log1p(y) - y is summed as a series
_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


@inlined
def exp32(x: Any) -> Any:
    """Exponential in single precision; below -87 it stays at exp(-87)."""
    x = f4(-87.0) if x < f4(-87.0) else x
    x = f4(88.0) if x > f4(88.0) else x
    n = np.floor(x * _LOG2_E + f4(0.5))
    r = (x - n * _LOG_2) - n * _LOG_2_REST
    p = f4(1 / 5040)
    p = p * r + f4(1 / 720)
    p = p * r + f4(1 / 120)
    p = p * r + f4(1 / 24)
    p = p * r + f4(1 / 6)
    p = p * r + f4(1 / 2)
    p = (p * r + f4(1)) * r + f4(1)
    return p * i4((i4(n) + _ONE) << i4(23)).view(f4)


@inlined
def log32(x: Any) -> Any:
    """Logarithm in single precision: k log 2 + 2 atanh(f / (2 + f)), x = 2^k (1 + f)."""
    bits = f4(x).view(i4)
    k = (bits - _ROOT) >> i4(23)
    f = i4(bits - (k << i4(23))).view(f4) - f4(1)
    s = f / (f4(2) + f)
    z = s * s
    p = f4(1 / 9)
    p = p * z + f4(1 / 7)
    p = p * z + f4(1 / 5)
    p = p * z + f4(1 / 3)
    twice = s + s
    of_rest = twice + (twice * z * p + f4(k) * _LOG_2_REST)
    return f4(k) * _LOG_2 + of_rest + (x - x)  # x - x keeps NaN, whose bits would give a number


@inlined
def log1p32(u: Any, shrink: Any) -> Any:
    """log(1 + u) in single precision, u >= 0, corrected for the rounding of 1 + u.

    `shrink` is 1 / (1 + u).
    """
    w = f4(1) + u
    return log32(w) + (u - (w - f4(1))) * shrink


@inlined
def log64(x: Any) -> Any:
    """Logarithm in double precision, to 1e-13."""
    bits = np.float64(x).view(i8)
    k = (bits - _ROOT_DOUBLE) >> i8(52)
    f = i8(bits - (k << i8(52))).view(np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    p = 1 / 15
    p = p * z + 1 / 13
    p = p * z + 1 / 11
    p = p * z + 1 / 9
    p = p * z + 1 / 7
    p = p * z + 1 / 5
    p = p * z + 1 / 3
    return k * _LOG_2_DOUBLE + 2.0 * (s + s * z * p) + (x - x)


@inlined
def log1p64(u: Any, shrink: Any) -> Any:
    """log(1 + u) in double precision, u >= 0; `shrink` is 1 / (1 + u)."""
    w = 1.0 + u
    return log64(w) + (u - (w - 1.0)) * shrink


@inlined
def sigmoids32(x: Any) -> Any:
    """1 / (1 + exp(-x)) and 1 / (1 + exp(x)) in single precision."""
    e = exp32(-abs(x))
    larger = f4(1) / (f4(1) + e)
    smaller = e * larger
    return (larger, smaller) if x >= f4(0) else (smaller, larger)


@reordered
def total(a: Any) -> Any:
    """Sum of an array."""
    found = a.dtype.type(0)
    for j in range(a.size):
        found += a[j]
    return found


@compiled
def largest(a: Any) -> Any:
    """Largest entry of an array without NaN."""
    # In lanes, because the compiler does not vectorise a running maximum by itself.
    lanes = np.full(N_LANES, -np.inf, a.dtype)
    n_whole = a.size // N_LANES
    for i in range(n_whole):
        for k in range(N_LANES):
            x = a[i * N_LANES + k]
            lanes[k] = x if x > lanes[k] else lanes[k]
    found = lanes.max()
    for j in range(n_whole * N_LANES, a.size):
        found = max(found, a[j])
    return found


@compiled
def stirling_remainder(z: float) -> float:
    """Return lgamma minus Stirling's formula, from its series; NIST DLMF, equation 5.11.1."""
    if z < SERIES_FROM:
        return math.lgamma(z) - (z - 0.5) * math.log(z) + z - _HALF_LOG_2_PI
    r = 1 / (z * z)
    series = (((1 / 1188 * r - 1 / 1680) * r + 1 / 1260) * r - 1 / 360) * r + 1 / 12
    return series / z


@compiled
def stirling_slope(z: float) -> float:
    """Return the derivative of the remainder: digamma(z) - log z + 1 / (2 z)."""
    # digamma(z) = digamma(z + 1) - 1 / z, until the series is accurate.
    shift, at = 0.0, z
    while at < SERIES_FROM:
        shift += 1 / at
        at += 1
    r = 1 / (at * at)
    series = (((-9 / 1188 * r + 7 / 1680) * r - 5 / 1260) * r + 3 / 360) * r - 1 / 12
    slope = series * r
    if at > z:
        slope += math.log(at / z) - 0.5 / at + 0.5 / z - shift
    return slope


@compiled
def log1p_minus(y: float) -> float:
    """log1p(y) - y without its cancellation at small y."""
    if -SMALL < y < SMALL:
        return y * y * (((y * 0.2 - 0.25) * y + 1 / 3) * y - 0.5)
    return math.log1p(y) - y


@compiled
def softplus64(x: float) -> float:
    """log(1 + exp(x)) in double precision."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@compiled
def sigmoid64(x: float) -> float:
    """1 / (1 + exp(-x)) in double precision."""
    e = math.exp(-abs(x))
    return 1 / (1 + e) if x >= 0 else e / (1 + e)
