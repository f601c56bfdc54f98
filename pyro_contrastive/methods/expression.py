"""Normalised expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.torch_tools import numpy_rng, seeded
from pyro_contrastive.analysis import expression
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.data.indices import as_indices
from pyro_contrastive.methods.base import Batches
from pyro_contrastive.methods.decoding import Covariates, DecodingHelpers, Expression, LibrarySize


class ExpressionMethods(DecodingHelpers):
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
        seed: int | None = None,
    ) -> dict[str, Expression]:
        """Return the decoder's normalised expression, with and without the salient latent.

        Parameters
        ----------
        adata, indices
            As in :meth:`get_latent_representation`.
        transform_batch
            Batch, or batches to average over, to decode under; default each cell's own. Latents
            are always inferred under the cell's own batch.
        gene_list
            Which genes; returned in the model's order, as in scvi-tools. Default all.
        library_size
            Multiplies the expression, which sums to 1 over genes; ``"latent"``: the cell's own
            library size. Refused where the likelihood has none (`Gaussian`).
        n_samples
            Posterior draws per cell.
        n_samples_overall
            Use so many cells, drawn from `indices` with replacement.
        batch_size
            Cells at a time; default 1,024.
        return_mean
            Average over the draws (default).
        return_numpy
            Return arrays rather than data frames; draws are always returned as an array.
        silent
            Show no progress bar, however long it takes. (``False`` by default, unlike scvi-tools':
            there is a bar only after a few seconds.)
        transform_covariates
            Further covariates to decode under, ``{key: value}``; others are each cell's own.
        seed
            Seed of all draws.

        Returns
        -------
        ``{"background": ..., "salient": ...}``, data frames or arrays ``[cells, genes]``, or arrays
        ``[n_samples, cells, genes]``. "background" decodes with the salient latent set to 0;
        "salient" with both, where the cell is a target cell: a background cell has none.

        Raises
        ------
        ValueError
            If a gene or batch is unknown, the condition of a cell is none of those registered (the
            error lists these), or the likelihood has no normalised expression.
        """
        chosen, data, cells = self._cells(adata, indices)
        decoding = self._decoding(
            gene_list,
            transform_batch,
            library_size,
            n_samples,
            return_mean,
            batch_size,
            transform_covariates,
        )
        with seeded(seed):
            cells = _sample_cells(cells, n_samples_overall)
            with progress("Expression", len(cells), silent=silent):
                values = expression.expression(
                    self.module, data, cells, decoding, salient=(False, True)
                )
        present = self._presenter(chosen, cells, decoding, library_size, return_numpy)
        return dict(zip(("background", "salient"), map(present, values), strict=True))

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
            Instead: which cells to decode with their salient latent; all others are decoded
            without. (scvi-tools decodes all without as soon as one is not among them.)

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
        # Without s it is the same for every cell; and those to have it may be named here.
        by_condition = expression_type == "salient"
        chosen, data, cells = self._cells(adata, indices, need_condition=by_condition)
        if indices_to_return_salient is not None:
            salient = as_indices(
                indices_to_return_salient, chosen.obs_names, "indices_to_return_salient"
            )
            data = data.with_condition(np.setdiff1d(np.arange(len(data)), salient), salient)
        decoding = self._decoding(
            gene_list,
            transform_batch,
            library_size,
            n_samples,
            return_mean,
            batch_size,
            transform_covariates,
        )
        with seeded(seed):
            cells = _sample_cells(cells, n_samples_overall)
            keep = expression_type != "background"
            with progress("Expression", len(cells), silent=silent):
                (value,) = expression.expression(
                    self.module, data, cells, decoding, salient=(keep,)
                )
        return self._presenter(chosen, cells, decoding, library_size, return_numpy)(value)


def _sample_cells(cells: NDArray[np.int64], n: int | None) -> NDArray[np.int64]:
    """Draw `n` of the cells with replacement; ``None``: keep them as they are."""
    return cells if n is None else numpy_rng().choice(cells, n)
