"""What calibration ranks of a cell: its latents, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pyro.poutine import Trace

from pyro_contrastive.analysis.counterfactuals import effect_draws
from pyro_contrastive.analysis.decoding import decode_batch
from pyro_contrastive.analysis.query import Decoding, Query
from pyro_contrastive.analysis.runs import run_model
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.model import SALIENT
from pyro_contrastive.sites import log_likelihood

__all__ = ["LATENTS", "Quantities", "ranks_among"]

Array = NDArray[np.float64]
LATENTS = ("z", "s", "library")


@dataclass(frozen=True)
class Quantities:
    """Functions of the latents of a cell, which posterior draws and the truth have alike.

    Latents (``z1`` ..., ``s1`` ..., ``library``) and the log-likelihood are always among them.

    Parameters
    ----------
    genes
        Positions of the genes of which normalised expression and treatment effect are taken: the
        site ``scale``, and the fold change of the mean of the counts, the site ``mean_scale``.
    names
        Names of these genes.
    pseudocount
        Of the treatment effect, as in
        :func:`~pyro_contrastive.analysis.counterfactuals.effect_draws`.
    """

    genes: Sequence[int] = ()
    names: Sequence[str] = ()
    pseudocount: float = 0.0

    def at(
        self, query: Query, batch: CellBatch, posterior: Trace, n_samples: int
    ) -> dict[str, Array]:
        """Evaluate them at draws, each ``[n_samples, cells]``; NaN where a cell has none.

        Parameters
        ----------
        query
            The model.
        batch
            The cells, with counts.
        posterior
            Draws of the latents, ``[n_samples, cells, latents]``.
        n_samples
            Their number.
        """
        found: dict[str, Array] = {}
        for site in (site for site in LATENTS if site in posterior.nodes):
            values = posterior.nodes[site]["value"].double().cpu().numpy()
            if site == SALIENT:
                values = np.where(_has_salient(query, batch), values, np.nan)
            n = values.shape[-1]
            names = [site] if site == "library" else [f"{site}{k + 1}" for k in range(n)]
            found |= dict(zip(names, np.moveaxis(values, -1, 0), strict=True))
        drawn = run_model(query.vae, batch, posterior, n_samples)
        found["log_likelihood"] = log_likelihood(drawn).double().cpu().numpy()
        return found | self._of_genes(query, batch, posterior, n_samples)

    def _of_genes(
        self, query: Query, batch: CellBatch, posterior: Trace, n_samples: int
    ) -> dict[str, Array]:
        if not len(self.genes):
            return {}
        of_scale, of_mean = (
            replace(
                query, decoding=Decoding(site, np.asarray(self.genes), n_samples, average=False)
            )
            for site in ("scale", "mean_scale")
        )
        expression = decode_batch(of_scale, batch, posterior)
        effect = effect_draws(of_mean, batch, posterior, self.pseudocount)
        effect[:, ~batch.is_target.cpu().numpy()] = np.nan
        found: dict[str, Array] = {}
        for title, values in (("expression of", expression), ("effect on", effect)):
            found |= {
                f"{title} {gene}": value
                for gene, value in zip(self.names, np.moveaxis(values, -1, 0), strict=True)
            }
        return found


def _has_salient(query: Query, batch: CellBatch) -> NDArray[np.bool_]:
    """Tell which salient latents the decoder sees, ``[cells, latents]`` or ``[cells, 1]``."""
    there = batch.is_target.unsqueeze(-1)
    used = query.vae.model.salient_prior.used(batch)
    return (there if used is None else there & used).cpu().numpy()


def ranks_among(truth: Array, draws: Array, rng: np.random.Generator) -> Array:
    """Count the draws that are smaller than the truth, ``[cells]``; NaN where it is NaN.

    Draws that equal the truth (an effect may be exactly 0) are put before or after it at random,
    every place being as likely, so that ranks of a right posterior are uniform there too.

    Parameters
    ----------
    truth
        ``[cells]``.
    draws
        ``[draws, cells]``.
    rng
        Source of the random places.
    """
    smaller, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    ranks = (smaller + rng.integers(0, equal + 1)).astype(float)
    ranks[np.isnan(truth)] = np.nan
    return ranks
