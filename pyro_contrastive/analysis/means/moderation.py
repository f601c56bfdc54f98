r"""Variances of many genes, squeezed towards what genes have in common (empirical Bayes).

Smyth (Statistical Applications in Genetics and Molecular Biology 3, 2004): if the variance of gene
g is scaled inverse chi-squared, :math:`1/\sigma_g^2 \sim \chi^2_{d_0} / (d_0 s_0^2)`, and its
estimate :math:`s_g^2` has d degrees of freedom, then

.. math:: \tilde s_g^2 = \frac{d_0 s_0^2 + d s_g^2}{d_0 + d}

makes a t-statistic with :math:`d_0 + d` degrees of freedom. :math:`d_0` and :math:`s_0^2` are those
with which mean and variance of :math:`\log s_g^2` over genes are as observed, in closed form
through digamma and trigamma functions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Squeezed", "inverse_trigamma", "squeeze"]

Array = NDArray[np.float64]
FEWEST_GENES = 3
"""Genes from which a common variance is learned; fewer keep their own."""
SMALLEST = 1e-5
"""Variances below this share of the median are set to it: a logarithm would run away."""


class Squeezed(NamedTuple):
    """Squeezed variances.

    Parameters
    ----------
    variance
        ``[genes]``.
    df
        Degrees of freedom, of the prior and of the data together.
    prior_df, prior_variance
        What genes have in common; with ``inf`` degrees of freedom all have the same variance.
    """

    variance: Array
    df: float
    prior_df: float
    prior_variance: float


def squeeze(variance: Array, df: int) -> Squeezed:
    """Squeeze estimates of variances towards a common one, as far as they agree.

    Parameters
    ----------
    variance
        Estimates, ``[genes]``.
    df
        Their degrees of freedom.
    """
    from scipy.special import digamma, polygamma  # noqa: PLC0415  # slow to import

    positive = variance[variance > 0]
    if len(positive) < FEWEST_GENES:
        return Squeezed(variance, df, 0.0, np.nan)
    logs = np.log(np.maximum(variance, SMALLEST * np.median(positive)))
    centred = logs - digamma(df / 2) + np.log(df / 2)
    mean = float(centred.mean())
    spread = float(centred.var(ddof=1) - polygamma(1, df / 2))
    # The degrees of freedom cannot be more than those of all genes together.
    total = float(df * len(variance))
    if spread <= 0:
        common = float(np.exp(mean))
        return Squeezed(np.full_like(variance, common), total, np.inf, common)
    prior_df = 2 * inverse_trigamma(spread)
    common = float(np.exp(mean + digamma(prior_df / 2) - np.log(prior_df / 2)))
    squeezed = (prior_df * common + df * variance) / (prior_df + df)
    return Squeezed(squeezed, min(prior_df + df, total), prior_df, common)


def inverse_trigamma(value: float) -> float:
    """Return x with trigamma(x) = `value` > 0, by Newton's method (Smyth 2004, appendix)."""
    from scipy.special import polygamma  # noqa: PLC0415  # slow to import

    smallest, largest = 1e-6, 1e7
    if value < smallest:
        return 1 / value
    if value > largest:
        return float(1 / np.sqrt(value))
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = polygamma(1, x)
        step = trigamma * (1 - trigamma / value) / polygamma(2, x)
        x += step
        if -step / x < 1e-8:  # noqa: PLR2004  # converged, from below
            break
    return float(x)
