r"""Log rates of donors on each side of a comparison, adjusted for the composition of their cells.

A *sample* is a donor on one side. Its counts O of a gene, summed over cells, are compared with
those expected (E) had all samples the same rate in each stratum (indirect standardisation):

.. math:: E_{ug} = \sum_k L_{uk} e^{a_{gk}}, \qquad y_{ug} = \log(O_{ug} + \phi_g / 2)
    - \tfrac{1}{2} \log(E_{ug}^2 + \phi_g^2 / 4)

with L the sums of sizes and :math:`e^{a_{gk}}` the rate of stratum k. The latter come from the
Poisson model with effects of strata and samples, :math:`L_{uk} \exp(a_{gk} + b_{gu})`, fitted by
turns, so that a stratum of which a responding sample has many cells is not given a higher rate for
it. The two terms beside the counts make y close to unbiased for a sample of any depth whose rate is
as expected: the expectation of the logarithm of a Poisson count plus 1/2 with mean E is close to
:math:`\tfrac12 \log(E^2 + 1/4)`, and :math:`\phi_g` is the overdispersion of cells within a sample,
from their scatter. From sampling cells, y has a variance of about :math:`\phi_g / (O + \phi_g/2)`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from pyro_contrastive.analysis.means.group_sums import DonorSums

__all__ = ["DonorRates", "donor_rates"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
MAX_TURNS = 100
TOLERANCE = 1e-4
PRIOR_COUNT = 0.5
"""Counts, as observed as expected, that keep the rate of a sample without counts above 0."""


class DonorRates(NamedTuple):
    """Log rates of samples, relative to what is expected of their cells.

    Parameters
    ----------
    donor, side
        Of each sample, ``[samples]``.
    component
        Samples that no chain of shared strata connects cannot be compared in their rates: they are
        in different components, ``[samples]``.
    value, variance
        Log rate, and its variance from sampling cells, ``[samples, genes]``.
    observed, expected
        Counts, ``[samples, genes]``.
    sizes
        Sum of the sizes of the cells of each sample, ``[samples]``.
    """

    donor: Codes
    side: Codes
    component: Codes
    value: Array
    variance: Array
    observed: Array
    expected: Array
    sizes: Array


def donor_rates(sums: DonorSums) -> DonorRates:
    """Compute the log rate of every gene in every sample.

    Parameters
    ----------
    sums
        Sums of groups whose strata have cells on both sides.
    """
    code, sample = np.unique(2 * sums.donor + sums.side, return_inverse=True)
    stratum = np.unique(sums.stratum, return_inverse=True)[1]
    of_sample, of_stratum = _member(sample), _member(stratum)
    observed = of_sample @ sums.counts
    expected = _expected(sums, sample, stratum, of_sample, of_stratum)
    phi = _overdispersion(sums)
    side = code % 2
    value = np.log(observed + phi / 2) - 0.5 * np.log(expected**2 + phi**2 / 4)
    # The rate of the whole side says how precise a sample is: its own count would give those that
    # are low by chance less weight.
    fitted = np.empty_like(expected)
    for which in (0, 1):
        on = side == which
        total = observed[on].sum(0) + PRIOR_COUNT
        fitted[on] = expected[on] * total / (expected[on].sum(0) + PRIOR_COUNT)
    return DonorRates(
        code // 2,
        side,
        _components(sample, stratum),
        value,
        phi / (fitted + phi / 2),
        observed,
        expected,
        of_sample @ sums.sizes,
    )


def _expected(
    sums: DonorSums, sample: Codes, stratum: Codes, of_sample: csr_matrix, of_stratum: csr_matrix
) -> Array:
    """Return the counts of samples if all had the same rates by stratum, ``[samples, genes]``."""
    observed, in_stratum = of_sample @ sums.counts, of_stratum @ sums.counts
    sizes = sums.sizes[:, None]
    total = observed.sum(0)
    rate = in_stratum / (of_stratum @ sizes)
    expected = of_sample @ (sizes * rate[stratum])
    for _ in range(MAX_TURNS):
        ratio = (observed + PRIOR_COUNT) / (expected + PRIOR_COUNT)
        rate = in_stratum / (of_stratum @ (sizes * ratio[sample]))
        new = of_sample @ (sizes * rate[stratum])
        # Rates and ratios are known up to a factor: as many counts are expected as observed.
        new *= total / np.maximum(new.sum(0), np.finfo(float).tiny)
        change = np.abs(new - expected) / (expected + PRIOR_COUNT)
        expected = new
        if change.max(initial=0.0) < TOLERANCE:
            break
    return expected


def _overdispersion(sums: DonorSums) -> Array:
    """Variance over mean of the counts of cells of a group, pooled, at least 1: ``[genes]``."""
    several = sums.of(sums.n_cells > 1)
    rate = several.counts / several.sizes[:, None]
    residual = (
        several.squares - 2 * rate * several.products + rate**2 * several.squared_sizes[:, None]
    )
    n = several.n_cells[:, None]
    total = several.counts.sum(0)
    scatter = (residual * n / np.maximum(n - 1, 1)).sum(0)
    return np.maximum(scatter / np.maximum(total, 1.0), 1.0)


def _member(code: Codes) -> csr_matrix:
    """Matrix that adds up the groups of each code."""
    return csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))))


def _components(sample: Codes, stratum: Codes) -> Codes:
    """Component of each sample in the graph of samples and the strata they have cells in."""
    n = int(sample.max()) + 1
    size = n + int(stratum.max()) + 1
    edges = coo_matrix((np.ones(len(sample)), (sample, n + stratum)), shape=(size, size))
    return connected_components(edges, directed=False)[1][:n].astype(np.int64)
