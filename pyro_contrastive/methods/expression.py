"""Normalised expression, counterfactuals and treatment effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from pyro_contrastive._tools.torch_tools import numpy_rng, seeded
from pyro_contrastive.analysis.counterfactuals import counterfactual_expression, treatment_effect
from pyro_contrastive.analysis.decoding import decode_cells
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.data.indices import as_indices
from pyro_contrastive.methods.base import Batches, Level, ModelBase
from pyro_contrastive.methods.interventions import SalientSource, query_under
from pyro_contrastive.methods.queries import (
    Covariates,
    Expression,
    LibrarySize,
    decoding_of,
    named,
    warn_if_draws_are_tables,
)

PSEUDOCOUNT = 1e-5
"""Added to expression that sums to 1 over genes, before it is compared."""


class ExpressionMethods(ModelBase):
    """Denoised expression of cells: observed, under another condition, and the difference."""

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
        seed: int | None = None,
    ) -> dict[str, Expression]:
        """Return the decoder's normalised expression, with and without the salient latent.

        Parameters
        ----------
        adata, indices, batch_size, silent, seed
            Cells, mini-batch size, progress bar and seed: see *Shared arguments* of
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
        query = self._query(adata, indices, batch_size)
        decoding = decoding_of(
            self,
            gene_list=gene_list,
            transform_batch=transform_batch,
            library_size=library_size,
            n_samples=n_samples,
            return_mean=return_mean,
            transform_covariates=transform_covariates,
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
        seed: int | None = None,
        silent: bool = False,
    ) -> Expression:
        """Return the ``"salient"`` part of :meth:`get_normalized_expression`; same arguments."""
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
        seed: int | None = None,
        silent: bool = False,
    ) -> Expression:
        """Return one kind of :meth:`get_normalized_expression`, or a mix of both, cell by cell.

        Parameters
        ----------
        adata, indices, transform_batch, gene_list, library_size, n_samples, n_samples_overall
            As in :meth:`get_normalized_expression`.
        batch_size, return_mean, return_numpy, transform_covariates, seed, silent
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
        if (expression_type is None) == (indices_to_return_salient is None):
            msg = "Give exactly one of expression_type and indices_to_return_salient."
            raise ValueError(msg)
        if expression_type not in {None, "salient", "background"}:
            msg = f"expression_type must be 'salient' or 'background', not {expression_type!r}."
            raise ValueError(msg)
        # The condition of a cell matters only where it decides whether the cell has an s: not if
        # none is to have one, and not if the caller says which cells are to have one.
        by_condition = expression_type == "salient"
        query = self._query(adata, indices, batch_size, need_condition=by_condition)
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
        )
        query = replace(query, decoding=decoding)
        with seeded(seed):
            query = _sampled(query, n_samples_overall)
            with progress("Expression", len(query), silent=silent):
                (value,) = decode_cells(query, salient=(expression_type != "background",))
        warn_if_draws_are_tables(query, return_numpy)
        return named(self, query, value, library_size, return_numpy)

    def get_counterfactual_expression(
        self,
        condition: Level,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        transform_batch: Batches = None,
        gene_list: Sequence[str] | None = None,
        library_size: LibrarySize = 1.0,
        n_samples: int = 25,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        *,
        salient_source: SalientSource = "aggregate_posterior",
        transform_covariates: Covariates = None,
        seed: int | None = None,
        silent: bool = False,
    ) -> Expression:
        """Return what cells would express under another condition (Pyro's do-operator).

        A treated cell under the background condition loses its salient latent, and a cell under its
        own condition keeps it. A cell under a treatment that it was not given, whether it is a
        background cell or was given another treatment, has no posterior for s there. It keeps its
        z, and each of its draws takes the s of a cell that was given that treatment, chosen at
        random from those that trained the model and drawn from its q(s | x): the aggregate
        posterior of the treatment. So use many draws, and note that the response does not depend on
        the cell it is given to (for example on its type).

        Parameters
        ----------
        condition
            One of the registered conditions; 0 (background) or 1 (target) if none are registered.
        adata, indices, transform_batch, gene_list, library_size, n_samples, batch_size
            As in :meth:`get_normalized_expression`, with 25 draws by default.
        return_mean, return_numpy, transform_covariates, seed, silent
            As in :meth:`get_normalized_expression`.
        salient_source
            Source of s under a treatment that a cell was not given.
            ``"aggregate_posterior"`` (default): see above. The treated cells are those of the
            model's own data that trained, or all of the treatment where it is not known which
            trained; they are of `adata` if the model has no data of its own. ``"prior"``: the
            salient prior of that treatment. The default prior, N(0, I), is the same for every
            treatment, and a warning says so; `PerConditionNormal` has one for each.

        Returns
        -------
        ``[cells, genes]``, or ``[n_samples, cells, genes]`` for the posterior draws themselves.

        Raises
        ------
        ValueError
            If the condition is unknown, or that of a cell (the error lists the known ones),
            `salient_source` is neither of the two, or there are no cells of the treatment.
        """
        query, intervention = query_under(
            self, condition, adata, indices, batch_size, salient_source
        )
        decoding = decoding_of(
            self,
            gene_list=gene_list,
            transform_batch=transform_batch,
            library_size=library_size,
            n_samples=n_samples,
            return_mean=return_mean,
            transform_covariates=transform_covariates,
        )
        query = replace(query, decoding=decoding)
        with seeded(seed), progress("Counterfactual expression", len(query), silent=silent):
            value = counterfactual_expression(query, intervention)
        warn_if_draws_are_tables(query, return_numpy)
        return named(self, query, value, library_size, return_numpy)

    def get_treatment_effect(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        transform_batch: Batches = None,
        gene_list: Sequence[str] | None = None,
        n_samples: int = 100,
        batch_size: int | None = None,
        *,
        transform_covariates: Covariates = None,
        interval: float = 0.95,
        pseudocount: float | None = None,
        seed: int | None = None,
        silent: bool = False,
    ) -> dict[str, pd.DataFrame]:
        """Return the effect of the treatment on each cell and gene, a log2 fold change.

        log2 of the expression of the cell over what it would be without its salient latent, with
        posterior mean and equal-tailed interval. Exactly 0 for background cells.

        Parameters
        ----------
        adata, indices, transform_batch, gene_list, n_samples, batch_size
            As in :meth:`get_normalized_expression`, with 100 draws by default.
        transform_covariates, seed, silent
            As in :meth:`get_normalized_expression`.
        interval
            Posterior probability between ``lower`` and ``upper``. Default 0.95. It needs at least
            2 / (1 - `interval`) - 1 draws.
        pseudocount
            Added to both expressions. Default: that of the likelihood (`Gaussian`: 1), or else
            1e-5, on the scale where expression sums to 1 over genes.

        Returns
        -------
        ``{"mean": ..., "lower": ..., "upper": ...}``, data frames ``[cells, genes]``.

        Raises
        ------
        ValueError
            If `interval` is not between 0 and 1, or `n_samples` is too small for it.
        """
        if not 0 < interval < 1:
            msg = f"interval must be between 0 and 1, not {interval}."
            raise ValueError(msg)
        fewest = math.ceil(2 / (1 - interval)) - 1
        if n_samples < fewest:
            msg = f"An interval of {interval} takes at least n_samples={fewest}, not {n_samples}."
            raise ValueError(msg)
        if pseudocount is None:
            pseudocount = self.module.model.likelihood.pseudocount or PSEUDOCOUNT
        query = self._query(adata, indices, batch_size)
        decoding = decoding_of(
            self,
            gene_list=gene_list,
            transform_batch=transform_batch,
            n_samples=n_samples,
            return_mean=True,
            transform_covariates=transform_covariates,
        )
        query = replace(query, decoding=decoding)
        with seeded(seed), progress("Treatment effects", len(query), silent=silent):
            effect = treatment_effect(query, interval=interval, pseudocount=pseudocount)
        tables: dict[str, Any] = {
            name: named(self, query, getattr(effect, name)) for name in ("mean", "lower", "upper")
        }
        return tables


def _sampled(query: Query, n_cells: int | None) -> Query:
    """Restrict a query to `n_cells` cells drawn with replacement; ``None``: keep them all."""
    return query if n_cells is None else query.of(numpy_rng().choice(query.cells, n_cells))


def _with_salient(query: Query, indices: ArrayLike) -> Query:
    """Take these cells for target cells and all others for background cells."""
    names = len(query.data) if query.obs_names is None else query.obs_names
    salient = as_indices(indices, names, "indices_to_return_salient")
    others = np.setdiff1d(np.arange(len(query.data)), salient)
    return replace(query, data=query.data.with_condition(others, salient))
