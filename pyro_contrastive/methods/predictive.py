"""Replicate data under the fitted model, or before it has seen any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive.analysis import predictive
from pyro_contrastive.analysis.predictive import Predicting, Replicates
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.levels import several
from pyro_contrastive.methods.base import Level
from pyro_contrastive.methods.counterfactual import (
    CounterfactualHelpers,
    SalientSource,
    check_salient_source,
)
from pyro_contrastive.methods.decoding import Covariates

Samples: TypeAlias = NDArray[np.float32] | list[sp.csr_matrix]
Wanted = tuple[CellData, NDArray[np.int64], Predicting]


class PredictiveHelpers(CounterfactualHelpers):
    """From what a user names to what is drawn."""

    def _replicates_of(
        self,
        adata: AnnData | None,
        indices: ArrayLike | None,
        *,
        n_samples: int,
        gene_list: Sequence[str] | None,
        batch_size: int | None,
        condition: Level | None = None,
        transform_batch: Any = None,
        transform_covariates: Covariates = None,
        salient_source: SalientSource = "aggregate_posterior",
        from_prior: bool = False,
        seed: int | None,
    ) -> Wanted:
        """Turn names into the data, the cells, and what to draw for them."""
        if n_samples < 1:
            msg = f"n_samples must be at least 1, not {n_samples}."
            raise ValueError(msg)
        if batch_size is not None and batch_size < 1:
            msg = f"batch_size must be at least 1, not {batch_size}."
            raise ValueError(msg)
        if several(transform_batch):
            msg = f"transform_batch must be one batch here, not {transform_batch!r}."
            raise ValueError(msg)
        check_salient_source(salient_source)
        code, donors = None, None
        if condition is None:
            _, data, cells = self._cells(adata, indices)
        else:
            _, data, cells, code, donors = self._cells_under(
                condition, adata, indices, salient_source
            )
        decoding = self._decoding(
            gene_list, transform_batch, 1.0, n_samples, False, batch_size, transform_covariates
        )
        return data, cells, Predicting(decoding, from_prior, code, donors, seed)


class PredictiveMethods(PredictiveHelpers):
    """New data for cells like those that were seen: from the posterior, or from the prior."""

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
        seed: int | None = None,
        silent: bool = False,
    ) -> Samples:
        """Draw replicate data: latents of each cell from the guide, then data from the model.

        The Pyro program is run, in evaluation mode, without its observations. Given the latents,
        replicates are independent of the data; but note what the latents take from them. With an
        observed library size (the default) that is the total count of the very cell: totals are
        data, not predicted, and the replicate of a cell has the depth of the cell. With a latent
        library size they are predicted. The latents come from the guide, so that a replicate is as
        good as the guide is.

        Parameters
        ----------
        adata, indices
            As in :meth:`get_latent_representation`.
        n_samples
            Replicates of each cell.
        gene_list
            Genes to return, in the model's order; default all. All are drawn.
        batch_size
            Cells at a time; default 1,024, or fewer with many draws.
        condition
            Draw the cells as if given this condition (Pyro's do-operator), as
            :meth:`get_counterfactual_expression` has it; default: each cell's own. The library size
            stays that of the cell.
        transform_batch
            Batch to decode under; default: each cell's own.
        transform_covariates
            Covariates to decode under, ``{key: value}``.
        salient_source
            With `condition`: see :meth:`get_counterfactual_expression`.
        sparse
            Return sparse matrices: a fifth of the memory, for typical counts.
        seed
            Seed; the draws also depend on `batch_size`. Default: torch's global state.
        silent
            Show no progress bar, however long it takes.

        Returns
        -------
        ``[n_samples, cells, genes]`` float32 (``n_samples`` also if it is 1); with `sparse` a list
        of `n_samples` CSR matrices ``[cells, genes]``. For more than fits in memory, see
        :meth:`iterate_posterior_predictive`.

        Raises
        ------
        ValueError
            If a gene, condition, batch or covariate is unknown, or `sparse` is asked for where
            data are no counts.
        """
        wanted = self._replicates_of(
            adata,
            indices,
            n_samples=n_samples,
            gene_list=gene_list,
            batch_size=batch_size,
            condition=condition,
            transform_batch=transform_batch,
            transform_covariates=transform_covariates,
            salient_source=salient_source,
            seed=seed,
        )
        with progress("Replicates", len(wanted[1]), silent=silent):
            return self._collected(*wanted, sparse=sparse)

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

        What the model takes for possible before it sees a cell. Of each cell it is told the
        condition, batch and covariates, and, where the library size is observed, the total count;
        decoder and learned priors are what they are: those of the trained model, if it is trained.

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
        wanted = self._replicates_of(
            adata,
            indices,
            n_samples=n_samples,
            gene_list=gene_list,
            batch_size=batch_size,
            transform_batch=transform_batch,
            transform_covariates=transform_covariates,
            from_prior=True,
            seed=seed,
        )
        with progress("Replicates", len(wanted[1]), silent=silent):
            return self._collected(*wanted, sparse=sparse)

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
        seed: int | None = None,
    ) -> Iterator[Replicates]:
        """Yield what :meth:`posterior_predictive_sample` returns, some cells at a time.

        Nothing holds all cells: sum up each part as it comes.

        Parameters
        ----------
        adata, indices, n_samples, gene_list, batch_size
            As in :meth:`posterior_predictive_sample`.
        condition, transform_batch, transform_covariates, salient_source, seed
            As in :meth:`posterior_predictive_sample`.

        Returns
        -------
        An iterator of pairs: ``cells``, the indices of the cells, and ``x``, their replicates
        ``[n_samples, cells, genes]``. What is asked for is checked at once, not at the first pair.

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
        wanted = self._replicates_of(
            adata,
            indices,
            n_samples=n_samples,
            gene_list=gene_list,
            batch_size=batch_size,
            condition=condition,
            transform_batch=transform_batch,
            transform_covariates=transform_covariates,
            salient_source=salient_source,
            seed=seed,
        )
        return predictive.replicates(self.module, *wanted)

    def _collected(
        self, data: CellData, cells: NDArray[np.int64], predicting: Predicting, *, sparse: bool
    ) -> Samples:
        likelihood = self.module.model.likelihood
        if sparse and not likelihood.support.is_discrete:
            msg = (
                f"sparse=True is of no use with {type(likelihood).__name__}: its data are no "
                "counts, and next to none of the values drawn are 0."
            )
            raise ValueError(msg)
        n_samples = predicting.decoding.n_samples
        n_genes = len(np.arange(len(self.setup.genes))[predicting.decoding.genes])
        parts = predictive.replicates(self.module, data, cells, predicting)
        if sparse:
            return predictive.collect_sparse(parts, n_samples, n_genes)
        return predictive.collect_dense(parts, n_samples, len(cells), n_genes)
