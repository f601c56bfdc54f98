"""Counterfactual expression and treatment effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis.counterfactuals import counterfactual_expression, treatment_effect
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.methods.base import Batches, Level, ModelBase
from pyro_contrastive.methods.held_out import held_out_or_given
from pyro_contrastive.methods.interventions import SalientSource, query_under
from pyro_contrastive.methods.queries import (
    Covariates,
    Expression,
    LibrarySize,
    Quantity,
    decoding_of,
    named,
    warn_if_draws_are_tables,
)

PSEUDOCOUNT = 1e-5
"""Added to expression that sums to 1 over genes, before it is compared."""


def usual_pseudocount(model: ModelBase) -> float:
    """Return the pseudocount of treatment effects where the user gives none."""
    return model.module.model.likelihood.pseudocount or PSEUDOCOUNT


class EffectMethods(ModelBase):
    """What cells would express under another condition, and what their treatment did."""

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
        quantity: Quantity = "mean",
        refine: bool | int = False,
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
        return_mean, return_numpy, transform_covariates, refine, seed, silent
            As in :meth:`get_normalized_expression`.
        quantity
            ``"mean"`` (default): the mean of the counts per unit of library size, structural zeros
            included. ``"scale"``: the decoder's scale, without them, as
            :meth:`get_normalized_expression` returns it by default. They differ only for
            likelihoods that inflate zeros (and for `Bernoulli`).
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
        check_arguments(locals())
        query, intervention = query_under(
            self, condition, adata, indices, batch_size, salient_source, refine=refine
        )
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
        quantity: Quantity = "mean",
        refine: bool | int | None = None,
        seed: int | None = None,
        silent: bool = False,
    ) -> dict[str, pd.DataFrame]:
        """Return the effect of the treatment on each cell and gene, a log2 fold change.

        log2 of the expression of the cell over what it would be without its salient latent, with
        posterior mean and equal-tailed interval. Exactly 0 for background cells.

        An interval means what it says for a cell that did not train and whose posterior is refined:
        where a coin decided the condition, 0 to 3 % of such 95 % intervals excluded 0 in nine fits,
        of cells that trained up to 15 % (``benchmarks/results/coin_tosses.md``). Both are therefore
        the default here.

        Parameters
        ----------
        adata, transform_batch, gene_list, n_samples, batch_size
            As in :meth:`get_normalized_expression`, with 100 draws by default.
        indices
            Positions, or a mask, of the cells. Default: those that did not train
            (`held_out_indices`), or all where that is not known or there are none. For all cells of
            the model's data see :meth:`cross_fit`.
        refine
            As in :meth:`get_normalized_expression`, but ``True`` by default if the model is
            trained, which takes 5 to 10 ms for a cell.
        transform_covariates, seed, silent
            As in :meth:`get_normalized_expression`.
        quantity
            As in :meth:`get_counterfactual_expression`. Where the treatment changes the structural
            zeros of a gene, ``"scale"`` misses that part of the effect.
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
        check_arguments(locals())
        fewest = math.ceil(2 / (1 - interval)) - 1
        if n_samples < fewest:
            msg = f"An interval of {interval} takes at least n_samples={fewest}, not {n_samples}."
            raise ValueError(msg)
        if pseudocount is None:
            pseudocount = usual_pseudocount(self)
        cells = held_out_or_given(self, adata, indices)
        refine = self.is_trained if refine is None else refine
        query = self._query(adata, cells, batch_size, refine=refine)
        decoding = decoding_of(
            self,
            gene_list=gene_list,
            transform_batch=transform_batch,
            n_samples=n_samples,
            return_mean=True,
            transform_covariates=transform_covariates,
            quantity=quantity,
        )
        query = replace(query, decoding=decoding)
        with seeded(seed), progress("Treatment effects", len(query), silent=silent):
            effect = treatment_effect(query, interval=interval, pseudocount=pseudocount)
        tables: dict[str, Any] = {
            name: named(self, query, getattr(effect, name)) for name in ("mean", "lower", "upper")
        }
        return tables
