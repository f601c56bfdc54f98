"""The effect of a treatment on the cells of one sample of a group."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive.analysis.means.blocks import Compared
from pyro_contrastive.analysis.means.log_ratio import fit_log_ratio, half_width
from pyro_contrastive.analysis.means.results import reason_not_tested
from pyro_contrastive.analysis.means.settings import MeansSettings

__all__ = ["GroupEffect", "effect_of"]

Array = NDArray[np.float64]
LOG_2 = math.log(2)


@dataclass(frozen=True)
class GroupEffect:
    """The effect on each gene in some cells: a value per gene, or one for all genes.

    Parameters
    ----------
    sample
        Code of the sample; ``None``: over all samples.
    lfc, lower, upper
        log2 fold change of the mean, and its interval, ``[genes]``.
    treated_mean, background_mean
        Mean counts per unit of size, ``[genes]``.
    model_lfc
        What the model says of the same treated cells, ``[genes]``.
    n_cells, n_background_cells, n_strata
        Cells and strata used.
    n_samples
        Samples that the effect is a mean of, ``[genes]``.
    compared_with
        Which background cells.
    not_estimated
        Why a number is missing, else empty, ``[genes]``.
    """

    sample: int | None
    lfc: Array
    lower: Array
    upper: Array
    treated_mean: Array
    background_mean: Array
    model_lfc: Array
    n_cells: int
    n_background_cells: int
    n_strata: int
    n_samples: NDArray[np.int64]
    compared_with: str
    not_estimated: NDArray[np.object_]


def effect_of(
    sample: int, compared: Compared, decoded: Array, settings: MeansSettings, compared_with: str
) -> GroupEffect:
    """Estimate the effect in the cells of one sample, with the interval that its cells give.

    Parameters
    ----------
    sample
        Its code.
    compared
        Its cells, and those they are compared with.
    decoded
        Expression of the treated cells of each block, summed over cells, with the salient latent
        and without it, ``[blocks, 2, genes]``.
    settings
        Settings of the test of means.
    compared_with
        Which background cells.
    """
    sums = compared.sums
    n_counts = sums.counts.sum((0, 1))
    enough = n_counts >= settings.fewest_counts
    fit = fit_log_ratio(sums)
    n_background, n_treated = (int(n) for n in sums.n_cells.sum(0))
    width = half_width(sums, settings.interval) * fit.standard_error
    value = np.where(enough, fit.value, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums.counts.sum(0) / sums.sizes.sum(0)[:, None]
        with_s, without_s = decoded[compared.blocks].sum(0)
        model_lfc = np.log2(with_s / without_s)
    return GroupEffect(
        sample=sample,
        lfc=value / LOG_2,
        lower=(value - width) / LOG_2,
        upper=(value + width) / LOG_2,
        treated_mean=means[1],
        background_mean=means[0],
        model_lfc=model_lfc,
        n_cells=n_treated,
        n_background_cells=n_background,
        n_strata=len(sums.n_cells),
        n_samples=enough.astype(np.int64),
        compared_with=compared_with,
        not_estimated=reason_not_tested(n_counts, settings.fewest_counts),
    )
