"""The result of a check, as tidy tables, and the results of several checks in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import pandas as pd

from pyro_contrastive.analysis.ppc.statistics import EFFECTS
from pyro_contrastive.analysis.ppc.tables import ALL, COMPARED, join
from pyro_contrastive.analysis.ppc.verdicts import with_verdicts

READINGS = ("lower in the data", "agrees", "higher in the data")
UNDEFINED = "not defined"
SUMMARY_COLUMNS = (
    *("model", "unit", "statistic", "group_by", "group", "n_units", "share_outside", "outside_by"),
    *COMPARED,
)


@dataclass(frozen=True, repr=False)
class PosteriorPredictiveCheck:
    """The result of a check: one tidy table for each kind of statistic.

    Every table has the columns ``model``, ``statistic``, ``group_by`` and ``group`` (which cells;
    "all" for all of them), ``observed`` (the statistic of the data), ``replicate_mean``, ``lower``
    and ``upper`` (an equal-tailed interval of the replicates), ``z`` (the distance of the data from
    the mean of the replicates, in standard deviations of the replicates) and ``p_value``.

    ``p_value`` is the posterior predictive p-value, the probability that a replicate has a larger
    value than the data (ties counted half). Near 0 the value is larger in the data than in
    replicates, near 1 smaller; both are a misfit. It is not the p-value of a test: the model has
    seen the data, so that under a correct model it is closer to 1/2 than a uniform number would be
    (Meng, Annals of Statistics 1994; Gelman, Meng & Stern, Statistica Sinica 1996). A misfit that
    it finds is real; one that it does not find may still exist. Statistics that the model can fit
    freely, such as the mean of a gene, say little; judge by the others.

    Attributes
    ----------
    overall
        Each statistic averaged over genes, cells or pairs (column ``unit``), and
        ``share_outside``: the share of these whose value lies outside its interval;
        ``outside_by``: the mean distance beyond the interval, 0 for those inside.
    genes, cells
        Statistics of each gene (in each group of cells), and of each cell.
    trends
        Variance and zero fraction against the mean: average over the genes of a ``bin``, around
        ``bin_mean``; geometric for the variance of counts.
    correlations
        Pearson correlation of pairs of genes, of log(1 + counts).
    effects
        log2 fold change of each gene between a treatment (``group``) and the background, of pooled
        counts per 10,000, plus 1; differences of means for data that are not counts.
    calibration
        Coverage: the share of entries within the central interval of their replicates, by
        ``level``, counted by randomised ranks, so that it is exact for counts too. It is compared
        not with replicates but with its value under a correct model, whose interval is from the
        standard error over cells.
    pit
        Histogram of the randomised ranks (probability integral transform) on 0 to 1, flat for a
        correct model. High ends mean that the model is too narrow, a high middle that it is too
        wide, a slope that it is biased.
    custom
        The user's own statistics.
    interval
        Probability between ``lower`` and ``upper``.
    n_samples
        Replicates of the data.
    data
        A fingerprint of the data, by which checks of the same data are recognised.
    """

    overall: pd.DataFrame
    genes: pd.DataFrame
    cells: pd.DataFrame
    trends: pd.DataFrame
    correlations: pd.DataFrame
    effects: pd.DataFrame
    calibration: pd.DataFrame
    pit: pd.DataFrame
    custom: pd.DataFrame
    interval: float
    n_samples: int
    data: str

    def __repr__(self) -> str:
        tables = {f.name: getattr(self, f.name) for f in fields(self)}
        sizes = {n: len(t) for n, t in tables.items() if isinstance(t, pd.DataFrame) and len(t)}
        rows = ", ".join(f"{name} ({size})" for name, size in sizes.items())
        return (
            f"PosteriorPredictiveCheck of {self.n_samples} replicates; summary() says what stands "
            f"out\ntables (rows): {rows}"
        )

    def summary(self, group_by: str = ALL) -> pd.DataFrame:
        """Return the main results, a row for each statistic (and model, and group of cells).

        Parameters
        ----------
        group_by
            A key of groups of cells. Default: all cells.

        Returns
        -------
        `overall`, `calibration` and the user's own single numbers, with the columns

        * ``reading``: ``"higher in the data"`` or ``"lower in the data"`` where the data lie
          outside the interval of the replicates, else ``"agrees"``; ``"not defined"`` where there
          is no value to compare. With thousands of cells nearly all real data lie outside;
        * ``difference`` and ``difference_in``: how much, data less replicates. ``"relative"`` (0.05
          is 5 % more in the data), or in ``"share"``, ``"correlation"`` or ``"log2"``, the
          statistic's own unit;
        * ``verdict``: whether it matters. ``"close"``: within the interval, or at most 5 % (0.01 of
          a share, 0.05 of a correlation or log2 change); ``"look"``: at most 20 % (0.05, 0.2,
          0.25), or most genes, cells or pairs are outside their own intervals; ``"off"``: more. See
          :mod:`pyro_contrastive.analysis.ppc.verdicts`.

        Raises
        ------
        ValueError
            If there are no such groups; the error lists the existing ones.
        """
        of_own = self.custom
        if len(of_own):
            of_own = of_own[of_own["unit"] == "data"]
        tables = [t for t in (self.overall, self.calibration, of_own) if len(t)]
        known = list(dict.fromkeys(g for t in tables for g in t["group_by"].astype(str)))
        if group_by not in known:
            msg = f"group_by={group_by!r} is not one of the groups of this check: {known}."
            raise ValueError(msg)
        columns = [name for name in SUMMARY_COLUMNS if any(name in t for t in tables)]
        chosen = [_chosen(table, group_by).reindex(columns=columns) for table in tables]
        table = join([part.astype(_as_text(part)) for part in chosen if len(part)])
        which = 1 + (table["observed"] > table["upper"]) - 1 * (table["observed"] < table["lower"])
        readings = np.asarray(READINGS, dtype=object)[which.to_numpy(dtype=int)]
        defined = table["observed"].notna() & table["replicate_mean"].notna()
        return with_verdicts(table.assign(reading=np.where(defined, readings, UNDEFINED)))

    @classmethod
    def compare(cls, checks: Mapping[str, Self]) -> Self:
        """Join the checks of several models; the column ``model`` has their names.

        Parameters
        ----------
        checks
            By name of the model, made with the same interval on the same data.

        Raises
        ------
        ValueError
            If there are none, their intervals differ, or they were not made on the same data.
        """
        if not checks:
            msg = "There are no checks to compare."
            raise ValueError(msg)
        first = next(iter(checks.values()))
        for name, check in checks.items():
            if check.interval != first.interval:
                msg = (
                    f"The check of {name!r} has interval={check.interval}, the first one "
                    f"{first.interval}: make them alike."
                )
                raise ValueError(msg)
            if check.data != first.data:
                msg = (
                    f"The check of {name!r} was made on other data than the first one: the values "
                    "observed differ. Use the same cells and genes for all models."
                )
                raise ValueError(msg)
        joined: dict[str, Any] = {}
        for f in fields(cls):
            values = [getattr(check, f.name) for check in checks.values()]
            if isinstance(values[0], pd.DataFrame):
                named = [v.assign(model=m) for m, v in zip(checks, values, strict=True) if len(v)]
                table = pd.concat(named, ignore_index=True) if named else values[0]
                if len(table):
                    table["model"] = pd.Categorical(table["model"], list(checks))
                joined[f.name] = table
            else:
                joined[f.name] = min(values)
        return cls(**joined)


def _chosen(table: pd.DataFrame, group_by: str) -> pd.DataFrame:
    chosen = table["group_by"] == group_by
    if group_by == ALL:  # an effect uses all cells, although its group is the treatment
        chosen |= table["statistic"].isin(EFFECTS)
    return table[chosen]


def _as_text(table: pd.DataFrame) -> dict[str, type]:
    """Columns to join as text, since the categories of several tables differ."""
    texts = ("model", "unit", "statistic", "group_by", "group")
    return {name: str for name in texts if name in table}
