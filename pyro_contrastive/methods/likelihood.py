"""How well the model describes cells."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis import likelihood
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.methods.base import ModelBase

PerCell = float | NDArray[np.float64]


class LikelihoodMethods(ModelBase):
    """ELBO and marginal likelihood (higher is better), reconstruction error (lower is better)."""

    def get_elbo(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        *,
        seed: int | None = None,
        silent: bool = False,
    ) -> PerCell:
        """Return the evidence lower bound on log p(x), in nats: per cell, or its mean.

        From one posterior draw, with analytic KL divergences where there are. Not per
        background/target pair, and not negated, as ``history`` has it.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        return_mean
            The mean over cells (default), or one value per cell, ``[cells]``.
        seed
            Seed of the posterior draw.
        silent
            Show no progress bar, however long it takes.

        Raises
        ------
        ValueError
            If the condition of a cell is none of those registered; the error lists these.
        """
        _, data, chosen = self._cells(adata, indices)
        with seeded(seed), progress("ELBO", len(chosen), silent=silent):
            value = likelihood.elbo(self.module, data, chosen, batch_size)
        return float(value.mean()) if return_mean else value

    def get_reconstruction_error(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        *,
        seed: int | None = None,
        silent: bool = False,
    ) -> dict[str, PerCell]:
        """Return -log p(x | z, s, l) at one posterior draw, in nats: lower is better.

        Parameters
        ----------
        adata, indices, batch_size, return_mean, seed, silent
            As in :meth:`get_elbo`.

        Returns
        -------
        ``{"reconstruction_loss": ...}``, as scvi-tools' models return it.
        """
        _, data, chosen = self._cells(adata, indices)
        with seeded(seed), progress("Reconstruction", len(chosen), silent=silent):
            value = -likelihood.log_likelihood_of_reconstruction(
                self.module, data, chosen, batch_size
            )
        return {"reconstruction_loss": float(value.mean()) if return_mean else value}

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_mc_samples: int = 1000,
        batch_size: int | None = None,
        return_mean: bool = True,
        *,
        seed: int | None = None,
        silent: bool = False,
    ) -> PerCell:
        """Return an importance-weighted estimate of log p(x), in nats: per cell, or its mean.

        Biased downwards, less so with more draws; never below the ELBO in expectation.

        Parameters
        ----------
        adata, indices, return_mean, seed, silent
            As in :meth:`get_elbo`.
        n_mc_samples
            Posterior draws per cell.
        batch_size
            Cells at a time; default 64 (memory is 50 draws x cells x genes).
        """
        _, data, chosen = self._cells(adata, indices)
        with seeded(seed), progress("Marginal likelihood", len(chosen), silent=silent):
            value = likelihood.marginal_log_likelihood(
                self.module, data, chosen, n_mc_samples, batch_size
            )
        return float(value.mean()) if return_mean else value
