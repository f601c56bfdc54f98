"""How well the model describes cells: likelihoods, and posterior predictive checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis import likelihood
from pyro_contrastive.analysis.ppc import (
    CheckSettings,
    PosteriorPredictiveCheck,
    Statistic,
    check_against_replicates,
)
from pyro_contrastive.analysis.ppc.collect import dense
from pyro_contrastive.analysis.ppc.custom import Function, as_statistics
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.methods.base import ModelBase
from pyro_contrastive.methods.ppc import data_to_check, gene_positions, streamed
from pyro_contrastive.methods.replicates import ReplicatesWanted, query_for_replicates

PerCell: TypeAlias = float | NDArray[np.float64]


class FitQualityMethods(ModelBase):
    """Likelihoods of cells, and comparison of the data with replicates drawn from the model."""

    def get_elbo(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        *,
        refine: bool | int = False,
        seed: int | None = None,
        silent: bool = False,
    ) -> PerCell:
        """Return the evidence lower bound on log p(x), in nats: per cell, or its mean.

        From one posterior draw, with analytic KL divergences where they exist. Unlike ``history``,
        it is not negated, and it is of a cell rather than of a background/target pair.

        Parameters
        ----------
        adata, indices, batch_size, refine, seed, silent
            Cells, mini-batch size, refinement, seed and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`.
        return_mean
            The mean over cells (default), or one value per cell, ``[cells]``.

        Raises
        ------
        ValueError
            If the condition of a cell was not registered; the error lists those that were.
        """
        check_arguments(locals())
        query = self._query(adata, indices, batch_size, refine=refine)
        with seeded(seed), progress("ELBO", len(query), silent=silent):
            value = likelihood.elbo(query)
        return _mean(value) if return_mean else value

    def get_reconstruction_error(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        *,
        refine: bool | int = False,
        seed: int | None = None,
        silent: bool = False,
    ) -> dict[str, PerCell]:
        """Return -log p(x | z, s, l) at one posterior draw, in nats: lower is better.

        Parameters
        ----------
        adata, indices, batch_size, return_mean, refine, seed, silent
            As in :meth:`get_elbo`.

        Returns
        -------
        ``{"reconstruction_loss": ...}``, as scvi-tools' models return it.
        """
        check_arguments(locals())
        query = self._query(adata, indices, batch_size, refine=refine)
        with seeded(seed), progress("Reconstruction", len(query), silent=silent):
            value = -likelihood.log_likelihood_of_reconstruction(query)
        return {"reconstruction_loss": _mean(value) if return_mean else value}

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_mc_samples: int = 1000,
        batch_size: int | None = None,
        return_mean: bool = True,
        *,
        refine: bool | int = False,
        seed: int | None = None,
        silent: bool = False,
    ) -> PerCell:
        """Return an importance-weighted estimate of log p(x), in nats: per cell, or its mean.

        Biased downwards, less so with more draws, and far less with `refine`. In expectation it is
        at least the ELBO.

        Parameters
        ----------
        adata, indices, return_mean, refine, seed, silent
            As in :meth:`get_elbo`.
        n_mc_samples
            Posterior draws per cell. Default 1,000.
        batch_size
            Cells at a time. Default 64 (memory is 50 draws x cells x genes).
        """
        check_arguments(locals())
        query = self._query(adata, indices, batch_size, refine=refine)
        with seeded(seed), progress("Marginal likelihood", len(query), silent=silent):
            value = likelihood.marginal_log_likelihood(query, n_mc_samples)
        return _mean(value) if return_mean else value

    def posterior_predictive_check(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_samples: int = 25,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        *,
        groupby: str | Sequence[str] | None = None,
        statistics: Iterable[str] | None = None,
        functions: Mapping[str, Function | Statistic] | None = None,
        correlation_genes: Sequence[str] | None = None,
        interval: float = 0.9,
        name: str = "model",
        refine: bool | int = False,
        seed: int | None = None,
        silent: bool = False,
    ) -> PosteriorPredictiveCheck:
        """Compare statistics of the data with those of replicates drawn from the fitted model.

        Replicates are those of :meth:`posterior_predictive_sample`. With an observed library size
        each has the depth of its cell, so that ``library_size`` says little then (for a Poisson
        nothing at all, unless size factors were registered). They are made for some cells at a
        time, and only sums over cells are kept, by gene and group, and a few numbers per cell.

        Parameters
        ----------
        adata, indices, batch_size, refine, seed, silent
            Cells, mini-batch size, refinement, seed and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`. Cells that did not train are the harder test.
        n_samples
            Replicates of the data, 25 by default. The more, the smaller a p-value can get.
        gene_list
            Genes to use. Default: all. Statistics of cells then use these genes only.
        groupby
            Columns of ``adata.obs``: statistics of genes are computed in each group too. Default:
            the batch and the labels registered. The condition is always among them.
        statistics
            Names. Default: all that have a meaning for the likelihood, of ``"library_size"`` (of
            cells), ``"mean"``, ``"variance"``, ``"cv"`` (coefficient of variation),
            ``"zero_fraction"`` and ``"maximum"`` (of genes and of cells), ``"variance_trend"`` and
            ``"zero_fraction_trend"`` (against the mean), ``"correlation"`` (of pairs of genes),
            ``"effect"`` (of each treatment), ``"calibration"``.
        functions
            Statistics of your own, ``{name: function}``: from a dense matrix ``[cells, genes]`` to
            one value per cell, one per gene, or a single number. A value per cell must depend on
            the counts of that cell only, since the function is called on some cells at a time. Any
            other function sees all cells (of each group) at once, which takes a dense replicate in
            memory; above 2 GB that is refused.
        correlation_genes
            Genes whose pairwise correlations are compared. Default: the 30 with the largest
            variance of log(1 + counts).
        interval
            Probability between ``lower`` and ``upper``. Default 0.9. It needs at least
            2 / (1 - `interval`) - 1 replicates.
        name
            Name of the model in the tables.

        Returns
        -------
        A :class:`~pyro_contrastive.analysis.ppc.PosteriorPredictiveCheck`: start with its
        ``summary()``. Several models, on the same cells:
        ``PosteriorPredictiveCheck.compare({"nb": check, "zinb": other})``.

        Raises
        ------
        KeyError
            If a column of `groupby` does not exist; the error lists the columns.
        ValueError
            If a statistic is unknown or has no meaning for the likelihood (the error says why),
            there are too few replicates for the interval, a gene is unknown, or the condition of a
            cell was not registered.

        Examples
        --------
        >>> from pyro_contrastive import ContrastiveVI
        >>> from pyro_contrastive.data import load_kang
        >>> adata = load_kang()[::50, :100].copy()
        >>> ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
        >>> model = ContrastiveVI(adata, n_hidden=8)
        >>> check = model.posterior_predictive_check(statistics=["zero_fraction"], seed=0)
        >>> check.genes[["gene", "group", "observed"]].head(2)
            gene group  observed
        0   HES4   all  0.814286
        1  ISG15   all  0.371429
        """
        check_arguments(locals())
        wanted = ReplicatesWanted(n_samples=n_samples, gene_list=gene_list, refine=refine)
        query, _ = query_for_replicates(self, adata, indices, batch_size, wanted)
        data = data_to_check(self, self._adata(adata).obs, query, groupby)
        own = as_statistics(functions, lambda n: dense(data.values[:n]))
        settings = CheckSettings(
            statistics=statistics,
            functions=own,
            correlation_genes=gene_positions(correlation_genes, data.names_of_genes()),
            interval=interval,
        )
        with seeded(seed):
            rank_seed = int(torch.randint(2**62, ()))
        # Statistics of whole replicates take a second pass, which draws them one by one.
        passes = 1 + n_samples * any(s.per != "cell" for s in own.values())
        with progress("Posterior predictive check", passes * len(query), silent=silent):
            return check_against_replicates(
                data, streamed(query, seed), settings, model=name, seed=rank_seed
            )


def _mean(of_cell: NDArray[np.floating[Any]]) -> float:
    """Return the mean over cells; an error if there are none."""
    if not len(of_cell):
        msg = (
            "indices selects no cells, so there is no mean over cells. return_mean=False returns "
            "one value per cell, here an empty array."
        )
        raise ValueError(msg)
    return float(of_cell.mean())
