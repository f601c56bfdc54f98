"""Simulation-based calibration: whether posteriors recover what made simulated cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating, numpy_rng
from pyro_contrastive.analysis.nuts import NutsSettings, sample_nuts, shared_values
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.ranks import LATENTS, Quantities, ranks_among
from pyro_contrastive.analysis.refined_posterior import RefinedGuide
from pyro_contrastive.analysis.refinement import refine
from pyro_contrastive.analysis.runs import draw_posterior
from pyro_contrastive.cells import CellBatch, X
from pyro_contrastive.interop.module.populations import trace_of
from pyro_contrastive.model import SALIENT
from pyro_contrastive.vae import ContrastiveVAE

__all__ = ["Calibration", "Method", "calibrate", "rank_histogram"]

Array = NDArray[np.float64]
Method = Literal["guide", "refined", "nuts"]

EXPECTED_PER_BIN = 5
"""Smallest expected number of ranks in a bin for a chi-square test (Cochran 1952)."""
MIN_BINS, MAX_BINS = 2, 20
LEVEL = 0.01
"""p-value, adjusted for the number of quantities, below which ranks are called not uniform."""
SHIFTED, OFF_WIDTH = 3.0, 0.1
"""Above these, ranks that are not uniform are called shifted (in standard errors of their mean),
and the posterior too narrow or wide (departure of their variance from a uniform's). They only
choose the words: the test decides whether ranks are uniform."""


@dataclass(frozen=True)
class Calibration:
    """Ranks of what made simulated cells among draws of the posterior given these cells.

    Parameters
    ----------
    ranks
        One row per simulated cell, one column per quantity (``z1`` ..., ``s1`` ..., ``library``,
        ``log_likelihood``, and of some genes ``expression of ISG15``, ``effect on ISG15``): how
        many of the draws are smaller, 0 ... `n_draws`. Among draws that equal the truth its place
        is drawn at random. NaN where a cell has no such quantity.
    n_draws
        Draws per simulated cell.
    method
        ``"guide"``, ``"refined"`` or ``"nuts"``: where the posterior draws come from.
    """

    ranks: pd.DataFrame
    n_draws: int
    method: Method

    @property
    def table(self) -> pd.DataFrame:
        r"""Test of uniformity, one row per quantity.

        ``chi2``, ``bins`` and ``p_value`` of a chi-square test on the histogram of ranks;
        ``p_adjusted``, the p-value times the number of quantities (Bonferroni), so that only one in
        a hundred checks of a right posterior has any of them below 0.01. With :math:`u` the rank
        divided by its range: ``shift``, the mean of u minus 1/2 in standard errors (positive: the
        draws are too small); ``spread``, the variance of u over that of a uniform (above 1: ranks
        gather at both ends, the posterior is too narrow; below 1: too wide). ``uniform`` and
        ``reading``.
        Quantities that fewer than 10 simulated cells have (there may be few target cells) are not
        tested: their row says so, and ``uniform`` is missing.
        """
        rows = {name: self._row(self.ranks[name].dropna().to_numpy()) for name in self.ranks}
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("quantity")
        table["p_adjusted"] = np.minimum(1.0, table["p_value"] * table["p_value"].count())
        uniform = (table["p_adjusted"] >= LEVEL).astype("boolean")
        table["uniform"] = uniform.where(table["p_value"].notna())
        table["reading"] = [_reading(row) for row in table.to_dict("records")]
        return table

    def _row(self, ranks: Array) -> dict[str, float]:
        from scipy import stats  # noqa: PLC0415  # slow to import

        if len(ranks) < MIN_BINS * EXPECTED_PER_BIN:
            untested = dict.fromkeys(("bins", "chi2", "p_value", "shift", "spread"), math.nan)
            return {"n": len(ranks)} | untested
        counts, expected = rank_histogram(ranks, self.n_draws)
        test = stats.chisquare(counts, expected)
        u = (ranks + 0.5) / (self.n_draws + 1)
        return {
            "n": len(ranks),
            "bins": len(counts),
            "chi2": float(test.statistic),
            "p_value": float(test.pvalue),
            "shift": float((u.mean() - 0.5) * math.sqrt(12 * len(u))),
            "spread": float(12 * ((u - 0.5) ** 2).mean()),
        }


def rank_histogram(ranks: Array, n_draws: int) -> tuple[Array, Array]:
    """Count ranks in bins of nearly equal width; return counts, and those a uniform would give.

    Parameters
    ----------
    ranks
        Whole numbers from 0 to `n_draws`, ``[cells]``.
    n_draws
        Draws per cell.

    Raises
    ------
    ValueError
        If there are too few for two bins with 5 expected in each.
    """
    n_bins = min(MAX_BINS, len(ranks) // EXPECTED_PER_BIN, n_draws + 1)
    if n_bins < MIN_BINS:
        msg = f"{len(ranks)} simulated cells are too few for a histogram of ranks: take more."
        raise ValueError(msg)
    bin_of_rank = np.arange(n_draws + 1) * n_bins // (n_draws + 1)
    counts = np.bincount(bin_of_rank[ranks.astype(int)], minlength=n_bins).astype(float)
    expected = np.bincount(bin_of_rank) / (n_draws + 1) * len(ranks)
    return counts, expected


def calibrate(
    query: Query,
    n_draws: int,
    *,
    quantities: Quantities | None = None,
    method: Method = "guide",
    nuts: NutsSettings | None = None,
) -> Calibration:
    """Simulate a cell like each of these, and rank what made it; call with a fixed seed.

    Condition, batch, covariates and observed library size are those of the real cell; latents and
    data are drawn from the model. Parameters with a prior are at their posterior mean.

    Parameters
    ----------
    query
        The model, the data and which cells.
    n_draws
        Draws from the posterior of each simulated cell.
    quantities
        What is ranked. Default: latents and the log-likelihood.
    method
        Source of the posterior draws: the guide, refined posteriors, or NUTS (slow).
    nuts
        Settings of NUTS; its draws are thinned to `n_draws`.
    """
    vae, ranks, ranked = query.vae, [], quantities or Quantities()
    rng = numpy_rng()
    with evaluating(vae):
        fixed = shared_values(vae)
        for batch in query.minibatches(n_draws):
            empty = batch.observing(None)
            truth = poutine.trace(poutine.condition(vae.model, fixed)).get_trace(empty)
            cells = empty.observing(truth.nodes[X]["value"])
            if method == "nuts":
                draws = _nuts_draws(vae, cells, n_draws, nuts)
            else:
                draws = _guide_draws(vae, cells, n_draws, is_refined=method == "refined")
            made = {site: truth.nodes[site]["value"].unsqueeze(0) for site in draws}
            true, drawn = (
                ranked.at(query, cells, trace_of(values | fixed), n)
                for values, n in ((made, 1), (draws, n_draws))
            )
            found = {name: ranks_among(true[name][0], drawn[name], rng) for name in true}
            ranks.append(pd.DataFrame(found))
    return Calibration(pd.concat(ranks, ignore_index=True), n_draws, method)


def _guide_draws(
    vae: ContrastiveVAE, batch: CellBatch, n_draws: int, *, is_refined: bool
) -> dict[str, Tensor]:
    guide = RefinedGuide(vae.guide, refine(vae, batch)) if is_refined else vae.guide
    nodes = draw_posterior(vae, batch, n_draws, guide=guide).nodes
    return {site: nodes[site]["value"] for site in LATENTS if site in nodes}


def _nuts_draws(
    vae: ContrastiveVAE, batch: CellBatch, n_draws: int, settings: NutsSettings | None
) -> dict[str, Tensor]:
    """Thin NUTS draws to `n_draws` per cell, evenly, and bring them back to their scale."""
    refined = refine(vae, batch)
    values = sample_nuts(vae, batch, refined.marginals(), settings).values
    drawn = {}
    for site, value in values.items():
        flat = value.flatten(0, 1)  # [draws, cells, latents]
        kept = torch.linspace(0, len(flat) - 1, n_draws).round().long()
        drawn[site] = flat[kept].exp() if site in refined.sites.positive else flat[kept]
    drawn[SALIENT] = torch.where(batch.is_target.unsqueeze(-1), drawn[SALIENT], 1.0)
    return drawn


def _reading(row: dict[str, float]) -> str:
    """Describe the shape of a histogram of ranks."""
    if math.isnan(row["p_value"]):
        return f"Not tested: only {row['n']:.0f} simulated cells have it, at least 10 are needed."
    if row["uniform"]:
        return "Uniform within what chance allows."
    found = []
    if abs(row["shift"]) > SHIFTED:
        side = "low" if row["shift"] > 0 else "high"
        found.append(f"draws are systematically too {side}")
    if row["spread"] > 1 + OFF_WIDTH:
        found.append("the posterior is too narrow (it is overconfident)")
    if row["spread"] < 1 - OFF_WIDTH:
        found.append("the posterior is too wide")
    return f"Not uniform: {'; '.join(found) or 'with no simple pattern'}."
