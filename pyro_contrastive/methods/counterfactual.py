"""Counterfactuals and treatment effects."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.torch_tools import evaluating, seeded
from pyro_contrastive.analysis import expression
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.cells import BACKGROUND, CellBatch
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.methods.base import NO_CELLS, Batches, Level
from pyro_contrastive.methods.decoding import Covariates, DecodingHelpers, Expression, LibrarySize

SalientSource = Literal["aggregate_posterior", "prior"]
PSEUDOCOUNT = 1e-5
"""Added to expression that sums to 1 over genes, before it is compared."""


def check_salient_source(salient_source: str) -> None:
    """Refuse what is no source of salient latents, whether or not they are asked for."""
    known = get_args(SalientSource)
    if salient_source not in known:
        msg = f"salient_source must be {known[0]!r} or {known[1]!r}, not {salient_source!r}."
        raise ValueError(msg)


class CounterfactualHelpers(DecodingHelpers):
    """Whose salient latents stand for a condition that cells were not given."""

    def _cells_under(
        self,
        condition: Level,
        adata: AnnData | None,
        indices: ArrayLike | None,
        salient_source: SalientSource,
    ) -> tuple[AnnData, CellData, NDArray[np.int64], int, expression.Donors | None]:
        """Read cells, the code of the condition they are to be under, and the donors for it."""
        code = self._condition_code(condition)
        check_salient_source(salient_source)
        # Untreated, every cell is without s, whatever it was given.
        chosen, data, cells = self._cells(adata, indices, need_condition=code != BACKGROUND)
        donors = None
        if code != BACKGROUND and salient_source == "prior":
            self._warn_if_treatments_are_alike(code)
        elif code != BACKGROUND and data.condition is not None:
            donors = self._donors(code, condition, chosen)
        return chosen, data, cells, code, donors

    def _donors(self, code: int, condition: Level, given: AnnData) -> expression.Donors:
        """Return the cells of a treatment, of the model's own data if it has any."""
        adata = given if self.adata is None else self.adata
        data = self._extract(adata)
        codes = self._condition_codes(adata, data)
        found = NO_CELLS if codes is None else np.flatnonzero(codes == code)
        if self._trained_cells is not None:
            trained = self._trained_cells.within(adata.obs_names, data.totals())
            found = found if trained is None else np.intersect1d(found, trained.train)
        if not found.size:
            msg = (
                f"There are no cells of {condition!r} to take salient latents from: give the model "
                "its data (model.adata, or load(..., adata=)), or use salient_source='prior'."
            )
            raise ValueError(msg)
        return expression.Donors(data, found)

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
            warnings.warn(msg, UserWarning, stacklevel=4)


class CounterfactualMethods(CounterfactualHelpers):
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
        seed: int | None = None,
        silent: bool = False,
    ) -> Expression:
        """Return what cells would express under another condition (Pyro's do-operator).

        A treated cell under the background condition loses its salient latent. A cell under its own
        condition stays as it is. A cell under a treatment it was never given, be it a background
        cell or one of another treatment, has no posterior for s there. It keeps its z, and each of
        its draws takes the s of a cell that was given that treatment, chosen at random from those
        the model was trained on and drawn from q(s | x) of it: the aggregate posterior of the
        treatment. So use many draws; and remember that whose response it is does not depend on the
        cell that is given it (on its type, say).

        Parameters
        ----------
        condition
            One of the registered conditions; 0 (background) or 1 (target) if none are.
        adata, indices, transform_batch, gene_list, library_size, n_samples, batch_size
            As in :meth:`get_normalized_expression`.
        return_mean, return_numpy, transform_covariates, seed, silent
            As in :meth:`get_normalized_expression`.
        salient_source
            Where s comes from under a treatment that a cell was never given:
            ``"aggregate_posterior"``, see above. The treated cells are those of the model's own
            data that trained (all of the treatment, where it is not known which trained); of
            `adata` if the model has no data of its own. ``"prior"``: the salient prior
            of that treatment. The default prior, N(0, I) for every treatment, says nothing of one
            treatment in particular, and a warning says so; `PerConditionNormal` tells them apart.

        Returns
        -------
        ``[cells, genes]``, or ``[n_samples, cells, genes]`` for the posterior draws themselves.

        Raises
        ------
        ValueError
            If the condition is unknown, or that of a cell (the error lists those there are); if
            `salient_source` is neither of the two, or there are no cells of the treatment.
        """
        chosen, data, cells, code, donors = self._cells_under(
            condition, adata, indices, salient_source
        )
        decoding = self._decoding(
            gene_list,
            transform_batch,
            library_size,
            n_samples,
            return_mean,
            batch_size,
            transform_covariates,
        )
        with seeded(seed), progress("Counterfactual expression", len(cells), silent=silent):
            value = expression.counterfactual_expression(
                self.module, data, cells, code, decoding, donors
            )
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
            As in :meth:`get_normalized_expression`.
        transform_covariates, seed, silent
            As in :meth:`get_normalized_expression`.
        interval
            Posterior probability between ``lower`` and ``upper``; takes at least
            2 / (1 - `interval`) draws.
        pseudocount
            Added to both sides; default that of the likelihood (`Gaussian`: 1), or else 1e-5, on
            the scale where expression sums to 1 over genes.

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
        chosen, data, cells = self._cells(adata, indices)
        decoding = self._decoding(
            gene_list, transform_batch, 1.0, n_samples, True, batch_size, transform_covariates
        )
        with seeded(seed), progress("Treatment effects", len(cells), silent=silent):
            effect = expression.treatment_effect(
                self.module, data, cells, decoding, interval=interval, pseudocount=pseudocount
            )
        present = self._presenter(chosen, cells, decoding, 1.0, None)
        return {name: present(getattr(effect, name)) for name in ("mean", "lower", "upper")}
