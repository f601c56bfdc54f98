"""The amortisation gap: the guide compared with refined posteriors, and with NUTS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.analysis.comparison import estimate
from pyro_contrastive.analysis.likelihood import all_log_weights
from pyro_contrastive.analysis.nuts import NutsDraws, NutsSettings, sample_nuts
from pyro_contrastive.analysis.progress import counted
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.refined_posterior import RefinedGuide
from pyro_contrastive.analysis.refinement import Refinement, refine
from pyro_contrastive.analysis.refinement_start import guide_moments
from pyro_contrastive.analysis.runs import device_of, dtype_of
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.guide import Moments
from pyro_contrastive.model import SALIENT
from pyro_contrastive.vae import ContrastiveVAE

__all__ = ["PosteriorAccuracy", "posterior_accuracy"]


@dataclass(frozen=True)
class PosteriorAccuracy:
    """How close the guide is to the posterior of some cells, given the decoder.

    Parameters
    ----------
    cells
        One row per cell, in nats: ``elbo_encoder`` and ``elbo_refined``, the ELBO under the guide
        and under the refined posterior; ``amortisation_gap``, their difference; ``log_p``,
        importance-weighted log p(x) with draws from the latter; ``approximation_gap``, what is
        left, because the posterior is not a normal; ``k_encoder`` and ``k_refined``, Pareto k; and
        with NUTS ``max_rhat``, ``min_ess`` and ``n_divergent``.
    latents
        One row per cell, site and dimension, on the scale where the latent is unconstrained
        (logarithms of a library size, and of other positive latents): ``encoder_mean``,
        ``encoder_sd``, ``refined_mean``, ``refined_sd``, and ``nuts_mean``, ``nuts_sd``, ``ess``,
        ``rhat``. ``s`` of target cells only.
    """

    cells: pd.DataFrame
    latents: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """Distance from the reference, per site: NUTS, or refined posteriors if NUTS was not run.

        Returns
        -------
        Rows ``(guide, site)``: ``mean_error``, the root mean square of the difference of means in
        standard deviations of the reference; ``sd_ratio``, the median of the standard deviation
        over that of the reference.
        """
        table = self.latents
        reference = "nuts" if "nuts_mean" in table else "refined"
        guides = ["encoder", "refined"] if reference == "nuts" else ["encoder"]
        rows = []
        for site, found in table.groupby("site", sort=False):
            for guide in guides:
                error = found[f"{guide}_mean"] - found[f"{reference}_mean"]
                error = error / found[f"{reference}_sd"]
                ratio = found[f"{guide}_sd"] / found[f"{reference}_sd"]
                rows.append(
                    {
                        "guide": guide,
                        "site": site,
                        "reference": reference,
                        "mean_error": math.sqrt(float((error**2).mean())),
                        "sd_ratio": float(ratio.median()),
                    }
                )
        return pd.DataFrame(rows).set_index(["guide", "site"])


def posterior_accuracy(
    query: Query,
    *,
    n_samples: int,
    refinement: Refinement | None = None,
    nuts: NutsSettings | None = None,
) -> PosteriorAccuracy:
    """Compare the guide with refined posteriors and with NUTS; call with a fixed seed.

    Parameters
    ----------
    query
        The model, the data and a few cells, with their names.
    n_samples
        Draws per cell for ELBO, log p(x) and k.
    refinement
        How posteriors are refined.
    nuts
        How to run NUTS. ``None``: it is not run.
    """
    vae, names = query.vae, query.names
    batch = query.data.cells(query.cells, device_of(vae), dtype_of(vae))
    with counted(len(query)) as bar, evaluating(vae):
        encoder = guide_moments(vae, batch)
        refined = refine(vae, batch, refinement)
        cells = _gaps(vae, batch, RefinedGuide(vae.guide, refined), n_samples)
        drawn = None
        if nuts is None:
            bar.advance(len(query))
        else:
            drawn = sample_nuts(vae, batch, refined.marginals(), nuts, bar.advance)
    latents = _latents(encoder, refined.marginals(), drawn, batch.is_target)
    latents.insert(0, "cell", names.to_numpy()[latents.pop("position")])
    table = pd.DataFrame({"cell": names.to_numpy(), **cells})
    if drawn is not None:
        by_cell = latents.groupby("cell", sort=False)
        table["max_rhat"] = by_cell["rhat"].max().reindex(names).to_numpy()
        table["min_ess"] = by_cell["ess"].min().reindex(names).to_numpy()
        table["n_divergent"] = drawn.n_divergent.numpy()
    return PosteriorAccuracy(table, latents)


def _gaps(
    vae: ContrastiveVAE, batch: CellBatch, best: RefinedGuide, n_samples: int
) -> dict[str, NDArray[np.float64]]:
    """ELBOs, log p(x) and k of each cell under the guide and under refined posteriors."""
    weights = [
        all_log_weights(vae, batch, n_samples, guide).cpu().numpy() for guide in (None, best)
    ]
    encoder, refined = (estimate(w) for w in weights)
    of_encoder, of_refined = (w.mean(axis=1) for w in weights)
    return {
        "elbo_encoder": of_encoder,
        "elbo_refined": of_refined,
        "amortisation_gap": of_refined - of_encoder,
        "log_p": refined.psis,
        "approximation_gap": refined.psis - of_refined,
        "k_encoder": encoder.k,
        "k_refined": refined.k,
    }


def _latents(
    encoder: Mapping[str, Moments],
    refined: Mapping[str, Moments],
    drawn: NutsDraws | None,
    is_target: Tensor,
) -> pd.DataFrame:
    """One row per cell (by position), site and dimension."""
    parts = []
    for site, (mean, _) in encoder.items():
        columns: dict[str, Tensor] = {}
        for name, moments in (("encoder", encoder), ("refined", refined)):
            columns[f"{name}_mean"] = moments[site][0]
            columns[f"{name}_sd"] = moments[site][1].sqrt()
        if drawn is not None:
            found = drawn.summary(site)
            columns |= {"nuts_mean": found["mean"], "nuts_sd": found["sd"]}
            columns |= {"ess": found["ess"], "rhat": found["rhat"]}
        there = is_target if site == SALIENT else torch.ones_like(is_target)
        position, dimension = (
            grid.flatten().cpu().numpy()
            for grid in torch.meshgrid(
                there.nonzero().flatten().cpu(), torch.arange(mean.shape[1]), indexing="ij"
            )
        )
        values = {n: c.detach()[there].flatten().cpu().numpy() for n, c in columns.items()}
        parts.append(
            pd.DataFrame({"position": position, "site": site, "dimension": dimension, **values})
        )
    return pd.concat(parts, ignore_index=True)
