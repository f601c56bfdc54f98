"""Data drawn from the model: replicates of cells, and draws for ArviZ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive.analysis.predictive import (
    Predicting,
    Replicates,
    collect_dense,
    collect_sparse,
    replicates,
)
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.interop.arviz import Export, LogLikelihood, to_arviz
from pyro_contrastive.methods.base import Level, ModelBase
from pyro_contrastive.methods.interventions import SalientSource
from pyro_contrastive.methods.queries import Covariates, decoding_of
from pyro_contrastive.methods.replicates import ReplicatesWanted, query_for_replicates

Samples: TypeAlias = NDArray[np.float32] | list[sp.csr_matrix]


class PredictiveMethods(ModelBase):
    """New data for cells like those that were seen, from the posterior or from the prior."""

    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        *,
        condition: Level | None = None,
        transform_batch: Level | None = None,
        transform_covariates: Covariates = None,
        salient_source: SalientSource = "aggregate_posterior",
        sparse: bool = False,
        refine: bool | int = False,
        seed: int | None = None,
        silent: bool = False,
    ) -> Samples:
        """Draw replicate data: latents of each cell from the guide, then data from the model.

        The Pyro program is run, in evaluation mode, without its observations. Given the latents,
        replicates are independent of the data; but note what the latents take from them. With an
        observed library size (the default) that includes the total count of the cell, so that a
        replicate has the depth of its cell; with a latent library size totals are predicted too.
        The latents come from the guide, so that a replicate is as good as the guide is.

        Parameters
        ----------
        adata, indices, batch_size, refine, silent
            Cells, mini-batch size, refinement and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`.
        n_samples
            Replicates of each cell. Default 1.
        gene_list
            Genes to return, in the model's order. Default: all. All are drawn in any case.
        condition
            Draw the cells as if given this condition (Pyro's do-operator), as
            :meth:`get_counterfactual_expression` does. Default: each cell's own. The library size
            remains that of the cell.
        transform_batch
            Batch to decode under. Default: each cell's own.
        transform_covariates
            Covariates to decode under, ``{key: value}``. Default: each cell's own.
        salient_source
            With `condition`: see :meth:`get_counterfactual_expression`.
        sparse
            Return sparse matrices, which take about a fifth of the memory for typical counts.
        seed
            Seed. The draws also depend on `batch_size` and on the cells: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`. Default: torch's global state.

        Returns
        -------
        ``[n_samples, cells, genes]`` float32 (also if ``n_samples`` is 1); with `sparse` a list
        of `n_samples` CSR matrices ``[cells, genes]``. For more than fits in memory, see
        :meth:`iterate_posterior_predictive`.

        Raises
        ------
        ValueError
            If a gene, condition, batch or covariate is unknown, or `sparse` is asked for where the
            data are not counts.
        """
        check_arguments(locals())
        wanted = ReplicatesWanted(
            n_samples,
            gene_list,
            condition,
            transform_batch,
            transform_covariates,
            salient_source,
            refine,
        )
        query, intervention = query_for_replicates(self, adata, indices, batch_size, wanted)
        predicting = Predicting(intervention=intervention, seed=seed)
        with progress("Replicates", len(query), silent=silent):
            return _collected(query, predicting, sparse=sparse)

    def prior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        *,
        transform_batch: Level | None = None,
        transform_covariates: Covariates = None,
        sparse: bool = False,
        seed: int | None = None,
        silent: bool = False,
    ) -> Samples:
        """Draw data from the model with latents from their priors, not from the guide.

        This is what the model considers possible before it sees a cell. Of each cell it is given
        the condition, batch and covariates, and the total count where the library size is observed.
        The decoder and learned priors are those of the model in its present state, trained or not.

        Parameters
        ----------
        adata, indices, n_samples, gene_list, batch_size, transform_batch, transform_covariates
            As in :meth:`posterior_predictive_sample`.
        sparse, seed, silent
            As in :meth:`posterior_predictive_sample`.

        Returns
        -------
        As in :meth:`posterior_predictive_sample`.
        """
        check_arguments(locals())
        wanted = ReplicatesWanted(
            n_samples,
            gene_list,
            transform_batch=transform_batch,
            transform_covariates=transform_covariates,
        )
        query, _ = query_for_replicates(self, adata, indices, batch_size, wanted)
        with progress("Replicates", len(query), silent=silent):
            return _collected(query, Predicting(from_prior=True, seed=seed), sparse=sparse)

    def iterate_posterior_predictive(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        *,
        condition: Level | None = None,
        transform_batch: Level | None = None,
        transform_covariates: Covariates = None,
        salient_source: SalientSource = "aggregate_posterior",
        refine: bool | int = False,
        seed: int | None = None,
    ) -> Iterator[Replicates]:
        """Yield what :meth:`posterior_predictive_sample` returns, some cells at a time.

        All cells are never in memory at once: sum up each part as it comes.

        Parameters
        ----------
        adata, indices, n_samples, gene_list, batch_size
            As in :meth:`posterior_predictive_sample`.
        condition, transform_batch, transform_covariates, salient_source, seed
            As in :meth:`posterior_predictive_sample`.

        Returns
        -------
        An iterator of pairs: ``cells``, the indices of the cells, and ``x``, their replicates
        ``[n_samples, cells, genes]``. Arguments are checked at once, not at the first pair.

        Examples
        --------
        >>> from pyro_contrastive import ContrastiveVI
        >>> from pyro_contrastive.data import load_kang
        >>> adata = load_kang()[::50].copy()
        >>> ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
        >>> model = ContrastiveVI(adata, n_hidden=8)
        >>> parts = model.iterate_posterior_predictive(n_samples=2, batch_size=40, seed=0)
        >>> [(int(part.cells[0]), part.x.shape) for part in parts]
        [(0, (2, 40, 2000)), (40, (2, 30, 2000))]
        """
        check_arguments(locals())
        wanted = ReplicatesWanted(
            n_samples,
            gene_list,
            condition,
            transform_batch,
            transform_covariates,
            salient_source,
            refine,
        )
        query, intervention = query_for_replicates(self, adata, indices, batch_size, wanted)
        return replicates(query, Predicting(intervention=intervention, seed=seed))

    def to_arviz(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_samples: int = 100,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        *,
        predictive: bool = True,
        prior: bool = True,
        log_likelihood: LogLikelihood | None = "cell",
        refine: bool | int = False,
        seed: int | None = None,
        silent: bool = False,
    ) -> Any:
        """Return draws for ArviZ, one chain, with named cells and genes.

        The draws come from the guide. They are independent, so that diagnostics of Markov chains
        do not apply, and as good as the guide is. How far they are from the posterior is in
        ``sample_stats["log_weight"]``, the log importance weight of every draw and cell,
        log p(x, latents) - log q(latents | x): with an exact guide it would not vary between draws.

        ``az.loo`` and ``az.compare`` take the log-likelihood given the latents. Every cell has its
        own latents, about which the other cells carry no information: importance weights for
        leaving a cell out are seldom reliable, and ArviZ will warn (Pareto k above 0.7). To compare
        models, use log p(x) with the latents integrated out, as by :meth:`get_marginal_ll` on cells
        that did not train or by :func:`~pyro_contrastive.compare_models`.

        Parameters
        ----------
        adata, indices, batch_size, refine, seed, silent
            Cells, mini-batch size, refinement, seed and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`.
        n_samples
            Draws. Default 100.
        gene_list
            Genes of the data and replicates, in the model's order. Default: all. The log-likelihood
            per cell is of all genes in any case.
        predictive, prior
            Include ``posterior_predictive``; include ``prior`` and ``prior_predictive``. Default:
            both.
        log_likelihood
            ``"cell"`` (default): [draws, cells]; ``"entry"``: [draws, cells, genes], which
            ``az.plot_loo_pit`` needs; ``None``: none.

        Returns
        -------
        What the installed ArviZ works with: ``xarray.DataTree`` (ArviZ 1.0 and later) or
        ``arviz.InferenceData`` (before). Its groups are ``posterior`` (``z``, ``s`` as the decoder
        sees it, 0 in background cells, ``library`` if the likelihood has one, and parameters that
        have a prior), ``sample_stats``, ``observed_data`` and, if asked for,
        ``posterior_predictive``, ``prior``, ``prior_predictive`` and ``log_likelihood``. Data are
        called ``x``.

        Raises
        ------
        ImportError
            If ArviZ is not installed.
        ValueError
            If the arrays would take more than 4 GB (the error says what to leave out), a gene is
            unknown, or `log_likelihood` is not one of the three.
        """
        check_arguments(locals())
        query = self._query(adata, indices, batch_size, refine=refine)
        if not len(query):
            msg = "There are no cells to export: indices selects none."
            raise ValueError(msg)
        query = replace(query, decoding=decoding_of(self, gene_list=gene_list, n_samples=n_samples))
        export = Export(n_samples, query.genes, predictive, prior, log_likelihood, seed)
        with progress("Draws", len(query), silent=silent):
            return to_arviz(
                query,
                export,
                gene_names=np.asarray(self.setup.genes, dtype=object)[query.genes],
                attributes={
                    "inference_library": "pyro_contrastive",
                    "likelihood": type(self.module.model.likelihood).__name__,
                },
            )


def _collected(query: Query, predicting: Predicting, *, sparse: bool) -> Samples:
    """Draw all replicates and join them."""
    likelihood = query.vae.model.likelihood
    if sparse and not likelihood.support.is_discrete:
        msg = (
            f"sparse=True does not help with {type(likelihood).__name__}: its data are not "
            "counts, and hardly any of the values drawn are 0."
        )
        raise ValueError(msg)
    n_samples, n_genes = query.decoding.n_samples, len(query.genes)
    parts = replicates(query, predicting)
    if sparse:
        return collect_sparse(parts, n_samples, n_genes)
    return collect_dense(parts, n_samples, len(query), n_genes)
