"""Donors compared by PyDESeq2: negative binomial regression of their sums of counts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.analysis.means.donor_fit import design_of
from pyro_contrastive.analysis.means.donor_rates import DonorRates
from pyro_contrastive.analysis.means.results import LOG_2, result_table
from pyro_contrastive.analysis.means.settings import MeansSettings

__all__ = ["pydeseq2_table", "standardised_counts"]

Array = NDArray[np.float64]
OUTLIER = "PyDESeq2: one donor is an outlier (Cook's distance)"
NO_RESULT = "PyDESeq2: no result"


def standardised_counts(rates: DonorRates) -> NDArray[np.int64]:
    """Return the counts of samples as they were had all the same composition of cells.

    A sample's counts of a gene are divided by what its composition makes of them: the counts
    expected of its cells over those expected of as many counts of the average composition.
    """
    average = rates.expected.sum(0) / rates.sizes.sum() * rates.sizes[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = np.where(average > 0, rates.expected / average, 1.0)
    counts = rates.observed / np.where(factor > 0, factor, 1.0)
    return np.rint(counts).astype(np.int64)


def pydeseq2_table(
    rates: DonorRates,
    reason: NDArray[np.object_],
    settings: MeansSettings,
    others: Mapping[str, Any],
) -> pd.DataFrame:
    """Test every gene; the design is the condition, and donors where all are on both sides.

    Parameters
    ----------
    rates
        Counts of samples, observed and expected.
    reason
        Why genes are not tested, ``[genes]``.
    settings
        Settings of the test.
    others
        Further columns of the table.

    Raises
    ------
    ImportError
        If PyDESeq2 is not installed.
    ValueError
        If there are batches in which samples cannot be compared with those of others.
    """
    from scipy.stats import norm  # noqa: PLC0415  # slow to import

    tested = np.flatnonzero(reason == "")
    found = _fitted(rates, tested, settings)
    columns = {name: np.full(len(reason), np.nan) for name in ("log2FoldChange", "lfcSE", "pvalue")}
    for name, column in columns.items():
        column[tested] = found[name].to_numpy()
    reason = reason.copy()
    without = tested[~np.isfinite(columns["pvalue"][tested])]
    reason[without] = np.where(np.isfinite(columns["lfcSE"][without]), OUTLIER, NO_RESULT)
    return result_table(
        columns["log2FoldChange"] * LOG_2,
        columns["lfcSE"] * LOG_2,
        float(norm.ppf((1 + settings.interval) / 2)),
        columns["pvalue"],
        reason,
        others,
    )


def _fitted(rates: DonorRates, genes: NDArray[np.int64], settings: MeansSettings) -> pd.DataFrame:
    """Fit by PyDESeq2, with our library sizes as size factors."""
    try:
        from pydeseq2.dds import DeseqDataSet  # noqa: PLC0415  # optional
        from pydeseq2.default_inference import DefaultInference  # noqa: PLC0415
        from pydeseq2.ds import DeseqStats  # noqa: PLC0415
    except ImportError as error:
        msg = (
            'donor_test="pydeseq2" needs the package PyDESeq2: '
            'pip install "pyro-contrastive[donors]"'
        )
        raise ImportError(msg) from error
    names = [f"sample{i}" for i in range(len(rates.side))]
    counts = standardised_counts(rates)[:, genes]
    design = _design(rates).set_axis(names)
    frame = pd.DataFrame(counts, names, [f"gene{i}" for i in range(len(genes))])
    inference = DefaultInference(n_cpus=1)
    with warnings.catch_warnings():
        # Its dispersion trend and its optimisers warn, and fall back as documented.
        warnings.simplefilter("ignore")
        data = DeseqDataSet(
            counts=frame,
            metadata=pd.DataFrame({"side": rates.side.astype(str)}, names),
            design=design,
            refit_cooks=False,
            inference=inference,
            quiet=True,
        )
        factors = rates.sizes / np.exp(np.log(rates.sizes).mean())
        data.obs["size_factors"] = factors
        data.layers["normed_counts"] = counts / factors[:, None]
        data.var["_normed_means"] = data.layers["normed_counts"].mean(0)
        data.fit_genewise_dispersions()
        data.fit_dispersion_trend()
        data.fit_dispersion_prior()
        data.fit_MAP_dispersions()
        data.fit_LFC()
        data.calculate_cooks()
        data.cooks_outlier()
        threshold = settings.lfc_threshold
        contrast = (design.columns == "side").astype(float)
        tests = DeseqStats(
            data,
            contrast=contrast,
            independent_filter=False,
            lfc_null=threshold,
            alt_hypothesis="greaterAbs" if threshold else None,
            inference=inference,
            quiet=True,
        )
        tests.summary()
    return tests.results_df


def _design(rates: DonorRates) -> pd.DataFrame:
    """Return intercept, side, and an indicator for each donor but one where all are paired."""
    design = pd.DataFrame({"intercept": 1.0, "side": rates.side.astype(float)})
    paired = design_of(rates.donor, rates.side) == "paired"
    if paired:
        for donor in np.unique(rates.donor)[1:]:
            design[f"donor{donor}"] = (rates.donor == donor).astype(float)
    elif len(np.unique(rates.component)) > 1:
        for component in np.unique(rates.component)[1:]:
            design[f"batch{component}"] = (rates.component == component).astype(float)
    return design
