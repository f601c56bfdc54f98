"""Normalised expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive._tools.torch_tools import numpy_rng, seeded
from pyro_contrastive.analysis.decoding import decode_cells
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.data.indices import as_indices
from pyro_contrastive.methods.base import Batches, ModelBase
from pyro_contrastive.methods.queries import (
    Covariates,
    Expression,
    LibrarySize,
    Quantity,
    decoding_of,
    named,
    warn_if_draws_are_tables,
)


class ExpressionMethods(ModelBase):
    """What cells express, denoised."""

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        transform_batch: Batches = None,
        gene_list: Sequence[str] | None = None,
        library_size: LibrarySize = 1.0,
        n_samples: int = 1,
        n_samples_overall: int | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        silent: bool = False,
        *,
        transform_covariates: Covariates = None,
        quantity: Quantity = "scale",
        refine: bool | int = False,
        seed: int | None = None,
    ) -> dict[str, Expression]:
        """Return the decoder's normalised expression, with and without the salient latent.

        Parameters
        ----------
        adata, indices, batch_size, silent, refine, seed
            Cells, mini-batch size, progress bar, refinement and seed: see *Shared arguments* of
            :class:`~pyro_contrastive.ContrastiveVI`.
        transform_batch
            Batch to decode under, or batches to average over. Default: each cell's own. Latents
            are always inferred under the cell's own batch.
        gene_list
            Which genes, returned in the model's order, as in scvi-tools. Default: all.
        library_size
            Multiplies the expression, which sums to 1 over genes; ``"latent"``: the cell's own
            library size. Default 1. Refused where the likelihood has no library size (`Gaussian`).
        n_samples
            Posterior draws per cell. Default 1.
        n_samples_overall
            Draw this many cells from `indices`, with replacement. Default: each cell once.
        return_mean
            Average over the draws (default).
        return_numpy
            Return arrays rather than data frames. Draws are always returned as an array.
        transform_covariates
            Further covariates to decode under, ``{key: value}``. Default: each cell's own.
        quantity
            ``"scale"`` (default), as in scvi-tools: the decoder's scale, which is what a gene would
            have without structural zeros. ``"mean"``: the mean of the counts per unit of library
            size, with them, as treatment effects use it. The two differ for likelihoods that
            inflate zeros, such as the default one.

        Returns
        -------
        ``{"background": ..., "salient": ...}``, data frames or arrays ``[cells, genes]``, or arrays
        ``[n_samples, cells, genes]``. "background" decodes with the salient latent set to 0,
        "salient" with both latents. They are equal in background cells, which have no salient
        latent.

        Raises
        ------
        ValueError
            If a gene or batch is unknown, the condition of a cell was not registered (the error
            lists the conditions that were), or the likelihood has no normalised expression.
        """
        check_arguments(locals())
        query = self._query(adata, indices, batch_size, refine=refine)
        decoding = decoding_of(
            self,
            gene_list=gene_list,
            transform_batch=transform_batch,
            library_size=library_size,
            n_samples=n_samples,
            return_mean=return_mean,
            transform_covariates=transform_covariates,
            quantity=quantity,
        )
        query = replace(query, decoding=decoding)
        with seeded(seed):
            query = _sampled(query, n_samples_overall)
            with progress("Expression", len(query), silent=silent):
                values = decode_cells(query, salient=(False, True))
        warn_if_draws_are_tables(query, return_numpy)
        kinds = dict(zip(("background", "salient"), values, strict=True))
        return {
            kind: named(self, query, value, library_size, return_numpy)
            for kind, value in kinds.items()
        }

    def get_salient_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        transform_batch: Batches = None,
        gene_list: Sequence[str] | None = None,
        library_size: LibrarySize = 1.0,
        n_samples: int = 1,
        n_samples_overall: int | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        *,
        transform_covariates: Covariates = None,
        quantity: Quantity = "scale",
        refine: bool | int = False,
        seed: int | None = None,
        silent: bool = False,
    ) -> Expression:
        """Return the ``"salient"`` part of :meth:`get_normalized_expression`; same arguments."""
        check_arguments(locals())
        return self.get_specific_normalized_expression(
            adata,
            indices,
            transform_batch,
            gene_list,
            library_size,
            n_samples,
            n_samples_overall,
            batch_size,
            return_mean,
            return_numpy,
            expression_type="salient",
            transform_covariates=transform_covariates,
            quantity=quantity,
            refine=refine,
            seed=seed,
            silent=silent,
        )

    def get_specific_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        transform_batch: Batches = None,
        gene_list: Sequence[str] | None = None,
        library_size: LibrarySize = 1.0,
        n_samples: int = 1,
        n_samples_overall: int | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        expression_type: Literal["salient", "background"] | None = None,
        indices_to_return_salient: ArrayLike | None = None,
        *,
        transform_covariates: Covariates = None,
        quantity: Quantity = "scale",
        refine: bool | int = False,
        seed: int | None = None,
        silent: bool = False,
    ) -> Expression:
        """Return one kind of :meth:`get_normalized_expression`, or a mix of both, cell by cell.

        Parameters
        ----------
        adata, indices, transform_batch, gene_list, library_size, n_samples, n_samples_overall
            As in :meth:`get_normalized_expression`.
        batch_size, return_mean, return_numpy, transform_covariates, quantity, refine, seed
            As in :meth:`get_normalized_expression`.
        silent
            As in :meth:`get_normalized_expression`.
        expression_type
            ``"salient"`` or ``"background"``.
        indices_to_return_salient
            Instead: which cells to decode with their salient latent. All others are decoded
            without. (scvi-tools decodes all cells without as soon as one is not among them.)

        Raises
        ------
        ValueError
            If not exactly one of `expression_type` and `indices_to_return_salient` is given.
        """
        check_arguments(locals())
        if (expression_type is None) == (indices_to_return_salient is None):
            msg = "Give exactly one of expression_type and indices_to_return_salient."
            raise ValueError(msg)
        # The condition of a cell matters only where it decides whether the cell has an s: not if
        # none is to have one, and not if the caller says which cells are to have one.
        by_condition = expression_type == "salient"
        query = self._query(adata, indices, batch_size, need_condition=by_condition, refine=refine)
        if indices_to_return_salient is not None:
            query = _with_salient(query, indices_to_return_salient)
        decoding = decoding_of(
            self,
            gene_list=gene_list,
            transform_batch=transform_batch,
            library_size=library_size,
            n_samples=n_samples,
            return_mean=return_mean,
            transform_covariates=transform_covariates,
            quantity=quantity,
        )
        query = replace(query, decoding=decoding)
        with seeded(seed):
            query = _sampled(query, n_samples_overall)
            with progress("Expression", len(query), silent=silent):
                (value,) = decode_cells(query, salient=(expression_type != "background",))
        warn_if_draws_are_tables(query, return_numpy)
        return named(self, query, value, library_size, return_numpy)


def _sampled(query: Query, n_cells: int | None) -> Query:
    """Restrict a query to `n_cells` cells drawn with replacement; ``None``: keep them all."""
    return query if n_cells is None else query.of(numpy_rng().choice(query.cells, n_cells))


def _with_salient(query: Query, indices: ArrayLike) -> Query:
    """Take these cells for target cells and all others for background cells."""
    names = len(query.data) if query.obs_names is None else query.obs_names
    salient = as_indices(indices, names, "indices_to_return_salient")
    others = np.setdiff1d(np.arange(len(query.data)), salient)
    # A cell has another posterior as a target cell than as a background cell.
    refined = query.refined and query.refined.anew()
    return replace(query, data=query.data.with_condition(others, salient), refined=refined)
