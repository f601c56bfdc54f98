"""Normalised expression, counterfactuals and treatment effects."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import ArrayLike

from pyro_contrastive.analysis import expression
from pyro_contrastive.cells import BACKGROUND, CellBatch
from pyro_contrastive.data.indices import as_indices
from pyro_contrastive.methods.base import Batches
from pyro_contrastive.methods.decoding import Covariates, DecodingHelpers, Expression, LibrarySize
from pyro_contrastive.torch_tools import evaluating, numpy_rng, seeded


class ExpressionMethods(DecodingHelpers):
    """What cells express, denoised; and what they would, under another condition."""

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
        silent: bool = True,
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
            library size.
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
            There is no progress bar to silence; ``False`` says so.
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
            If a gene or batch is unknown, or the likelihood has no normalised expression.
        """
        if not silent:
            warnings.warn("There is no progress bar here to be shown.", UserWarning, stacklevel=2)
        chosen, data, cells = self._cells(adata, indices)
        decoding = self._decoding(
            gene_list, transform_batch, library_size, n_samples, return_mean, batch_size
        )
        decoding = self._with_covariates(decoding, transform_covariates)
        with seeded(seed):
            if n_samples_overall is not None:
                cells = numpy_rng().choice(cells, n_samples_overall)
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
    ) -> Expression:
        """Return one kind of :meth:`get_normalized_expression`, or a mix of both, cell by cell.

        Parameters
        ----------
        adata, indices, transform_batch, gene_list, library_size, n_samples, n_samples_overall
            As in :meth:`get_normalized_expression`.
        batch_size, return_mean, return_numpy, transform_covariates, seed
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
        chosen, data, cells = self._cells(adata, indices)
        if indices_to_return_salient is not None:
            salient = as_indices(indices_to_return_salient, len(data), "indices_to_return_salient")
            data = data.with_condition(np.setdiff1d(np.arange(len(data)), salient), salient)
        decoding = self._decoding(
            gene_list, transform_batch, library_size, n_samples, return_mean, batch_size
        )
        decoding = self._with_covariates(decoding, transform_covariates)
        with seeded(seed):
            if n_samples_overall is not None:
                cells = numpy_rng().choice(cells, n_samples_overall)
            keep = expression_type != "background"
            (value,) = expression.expression(self.module, data, cells, decoding, salient=(keep,))
        return self._presenter(chosen, cells, decoding, library_size, return_numpy)(value)

    def get_counterfactual_expression(
        self,
        condition: str | int,
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
        transform_covariates: Covariates = None,
        seed: int | None = None,
    ) -> Expression:
        """Return what cells would express under another condition (Pyro's do-operator).

        A treated cell under the background condition loses its salient latent. A cell under a
        condition it was never seen in has no posterior for s there: s is drawn from the salient
        prior of that condition, so use many draws. Under the default prior, N(0, I) for every
        treatment, that says nothing of this treatment in particular, and a warning says so: use a
        salient prior that looks at the condition (`PerConditionNormal`). A cell under its own
        condition stays as it is.

        Parameters
        ----------
        condition
            One of the registered conditions; 0 (background) or 1 (target) if none are.
        adata, indices, transform_batch, gene_list, library_size, n_samples, batch_size
            As in :meth:`get_normalized_expression`.
        return_mean, return_numpy, transform_covariates, seed
            As in :meth:`get_normalized_expression`.

        Returns
        -------
        ``[cells, genes]``, or ``[n_samples, cells, genes]`` for the posterior draws themselves.

        Raises
        ------
        ValueError
            If the condition is unknown; the error lists those there are.
        """
        code = self._condition_code(condition)
        self._warn_if_treatments_are_alike(code)
        chosen, data, cells = self._cells(adata, indices)
        decoding = self._decoding(
            gene_list, transform_batch, library_size, n_samples, return_mean, batch_size
        )
        decoding = self._with_covariates(decoding, transform_covariates)
        with seeded(seed):
            value = expression.counterfactual_expression(self.module, data, cells, code, decoding)
        return self._presenter(chosen, cells, decoding, library_size, return_numpy)(value)

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
        pseudocount: float = 1e-5,
        seed: int | None = None,
    ) -> dict[str, pd.DataFrame]:
        """Return the effect of the treatment on each cell and gene, a log2 fold change.

        log2 of the expression of the cell over what it would be without its salient latent, with
        posterior mean and equal-tailed interval. Exactly 0 for background cells.

        Parameters
        ----------
        adata, indices, transform_batch, gene_list, n_samples, batch_size
            As in :meth:`get_normalized_expression`.
        transform_covariates, seed
            As in :meth:`get_normalized_expression`.
        interval
            Posterior probability between ``lower`` and ``upper``; takes at least
            2 / (1 - `interval`) draws.
        pseudocount
            Added to both sides, on the scale where expression sums to 1 over genes.

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
        chosen, data, cells = self._cells(adata, indices)
        decoding = self._decoding(gene_list, transform_batch, 1.0, n_samples, True, batch_size)
        decoding = self._with_covariates(decoding, transform_covariates)
        with seeded(seed):
            effect = expression.treatment_effect(
                self.module, data, cells, decoding, interval=interval, pseudocount=pseudocount
            )
        present = self._presenter(chosen, cells, decoding, 1.0, None)
        return {name: present(getattr(effect, name)) for name in ("mean", "lower", "upper")}

    def _warn_if_treatments_are_alike(self, code: int) -> None:
        n_conditions = len(self.setup.conditions)
        if code == BACKGROUND or n_conditions <= 2:  # noqa: PLR2004  # one treatment
            return
        other = next(c for c in range(1, n_conditions) if c != code)
        draws = []
        for c in (code, other):
            cells = CellBatch(condition=torch.tensor([c], device=self.device))
            with evaluating(self.module), seeded(0):
                draws.append(self.module.model.s_dist(cells).sample())
        if torch.equal(*draws):
            msg = (
                "The salient prior is the same for every treatment: cells that were not given this "
                "one are decoded with a salient latent of any treatment. Use a salient_prior that "
                "looks at the condition, such as PerConditionNormal."
            )
            warnings.warn(msg, UserWarning, stacklevel=3)
