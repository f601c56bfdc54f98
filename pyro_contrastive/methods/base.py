"""The base class of all methods of a model: its setup, its module, its data."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix, hstack

from pyro_contrastive._tools.arguments import check_arguments, shown
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.runs import device_of
from pyro_contrastive.analysis.stored_posteriors import StoredPosteriors
from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.data.cell_data import CellData, in_parts
from pyro_contrastive.data.counts import cell_names, check_anndata, check_not_empty, counts_of
from pyro_contrastive.data.indices import as_indices, check_some
from pyro_contrastive.data.levels import listed, position_of, suggestion
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.data.support import check_support
from pyro_contrastive.likelihoods import Likelihood
from pyro_contrastive.methods.held_out import held_out_cells
from pyro_contrastive.methods.new_data import (
    check_conditions,
    check_filled,
    warn_of_unknown,
)
from pyro_contrastive.methods.refined import refined_cells, refinement_of
from pyro_contrastive.observed.matrix import Matrix
from pyro_contrastive.observed.on_disk import OnDisk
from pyro_contrastive.observed.source import Indices, as_observed
from pyro_contrastive.training.calls import TrainCall
from pyro_contrastive.training.history import History
from pyro_contrastive.training.trained_cells import TrainedCells, same_totals
from pyro_contrastive.vae import ContrastiveVAE

Level: TypeAlias = str | float | bool | np.generic
"""A value of a column, of the type that it has there."""
Batches: TypeAlias = Level | Iterable[Level] | None
logger = logging.getLogger(__name__)

NO_CELLS: NDArray[np.int64] = np.empty(0, dtype=np.int64)


def _check_cells(
    adata: AnnData, layer: str | None, likelihood: Likelihood, counts: Matrix, cells: Indices
) -> None:
    check_support(counts, adata, layer, likelihood, cells=cells)


class ModelBase:
    """State of a model, and reading the cells that a method is asked about."""

    setup: Setup
    settings: dict[str, Any]
    module: ContrastiveVAE
    adata: AnnData | None
    is_trained: bool
    _history: History
    # Condition code and total count by cell name, if the populations were given to `train` as
    # indices. The total count distinguishes cells of the same name.
    _conditions: pd.DataFrame | None = None
    _warned_untrained: bool = False
    _warned_of_trained_cells: bool = False

    # To fit the same again: the module before its first training, and each call of `train`.
    _untrained_module: ContrastiveVAE | None = None
    _runs: tuple[TrainCall, ...] = ()

    _trained_cells: TrainedCells | None = None  # of the last run of training
    _stored_posteriors: StoredPosteriors | None = None  # what refine_posterior() made

    @property
    def train_indices(self) -> NDArray[np.int64] | None:
        """Positions of the cells that trained, sorted; ``None`` before training.

        They are found in ``model.adata`` by name and total count, so that it may have lost cells
        since training, or have them in another order. ``None`` also if it holds cells that were not
        there (for example renamed ones), or if names repeat.
        """
        found = self._cells_of_training()
        return None if found is None else found.train

    @property
    def validation_indices(self) -> NDArray[np.int64] | None:
        """Positions of the cells that were held out; see `train_indices`."""
        found = self._cells_of_training()
        return None if found is None else found.validation

    @property
    def test_indices(self) -> NDArray[np.int64] | None:
        """Positions of the cells that neither trained nor were held out; see `train_indices`."""
        found = self._cells_of_training()
        return None if found is None else found.test

    @property
    def held_out_indices(self) -> NDArray[np.int64] | None:
        """Positions of the cells that did not train: `validation_indices` and `test_indices`.

        Verdicts, scores and intervals mean what they say for these cells only. Cells that were
        added to ``model.adata`` since training are among them. ``None`` if it is not known which
        cells trained; see `train_indices`.
        """
        return held_out_cells(self)

    @property
    def is_trained_(self) -> bool:
        """The name of `is_trained` in scvi-tools."""
        return self.is_trained

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return device_of(self.module)

    def to_device(self, device: str | int | torch.device) -> None:
        """Move the model: ``"cpu"``, ``"cuda:0"``, or the number of a CUDA device."""
        self.module.to(device)

    @property
    def genes(self) -> list[str]:
        """Names of the genes, in the model's order."""
        return list(self.setup.genes)

    def prepare_query_anndata(self, adata: AnnData, *, fill_missing: bool = False) -> AnnData:
        """Return cells with exactly the model's genes, in its order, as a new AnnData.

        Methods that take ``adata=`` reorder genes themselves; this is for data in which some genes
        are missing.

        Parameters
        ----------
        adata
            Cells with the columns the model was set up with.
        fill_missing
            Fill missing genes with zero counts. Default: an error. The model takes a zero for an
            observation, so fill in a few genes, not many.

        Returns
        -------
        A copy with the counts (of the registered layer), ``obs``, ``obsm`` and ``uns`` of `adata`.

        Raises
        ------
        ValueError
            If genes are missing and `fill_missing` is not set, or genes of the model occur several
            times; the error names some. Names of other genes may repeat.
        """
        check_arguments(locals())
        if not isinstance(self, ModelBase):  # as scvi-tools' static method, of the class
            msg = (  # type: ignore[unreachable]  # untyped callers
                "prepare_query_anndata is a method of the fitted model here, not of the class: "
                "model.prepare_query_anndata(adata). Load a saved model first: ContrastiveVI.load."
            )
            raise TypeError(msg)
        check_not_empty(adata)
        counts_of(adata, self.setup.layer)  # refuses what cannot be read
        self.setup.check_repeats(adata)
        missing = self.setup.missing_genes(adata)
        if not fill_missing or not missing:
            chosen = self.setup.with_genes(adata)
            return chosen.to_memory() if chosen.isbacked else chosen.copy()
        check_filled(missing, self.genes, adata)
        layer = self.setup.layer
        adata = adata[:, adata.var_names.isin(self.setup.genes)]
        counts = csr_matrix(adata.X if layer is None else adata.layers[layer])
        zeros = csr_matrix((adata.n_obs, len(missing)), dtype=counts.dtype)
        filled = AnnData(
            hstack([counts, zeros], format="csr"),
            obs=adata.obs,
            var=pd.DataFrame(index=[*adata.var_names, *missing]),
            obsm=dict(adata.obsm),
            uns=dict(adata.uns),
            layers=None,
        )
        if layer is not None:
            filled.layers[layer] = filled.X
        return filled[:, self.genes].copy()

    def _cells_of_training(self) -> TrainedCells | None:
        """Cells of the last run, at their present positions; ``None`` if these are not known."""
        if self._trained_cells is None or self.adata is None:
            return self._trained_cells
        try:
            totals = as_observed(
                counts_of(self.setup.with_genes(self.adata), self.setup.layer)
            ).totals()
        except (KeyError, ValueError):  # genes or a layer are gone, so it is other data
            return None
        return self._trained_cells.within(self.adata.obs_names, totals)

    def _adata(self, adata: AnnData | None) -> AnnData:
        chosen = adata if adata is not None else self.adata
        if chosen is None:
            msg = "The model was loaded without data: give adata=."
            raise ValueError(msg)
        check_anndata(chosen)
        return chosen

    def _extract(
        self,
        adata: AnnData,
        cells: NDArray[np.int64] | None = None,
        *,
        with_condition: bool = False,
    ) -> CellData:
        """Read cells, and refuse data outside the likelihood's support.

        Given `cells`, only their counts are read and checked, so that the cost of a question about
        a few cells does not depend on the size of the data set. They are checked each time, because
        the AnnData may have been changed in place.
        """
        is_part = cells is not None and len(cells) < adata.n_obs
        data = self.setup.extract(adata, with_condition=with_condition, on_demand=is_part)
        adata = self.setup.with_genes(adata)
        for modality in self.module.model.modalities:
            observed = data.observed[modality.site]
            if isinstance(observed, OnDisk):  # checked whenever cells are read
                check = partial(_check_cells, adata, self.setup.layer, modality.likelihood)
                data = replace(data, counts=observed.checked_by(check))
                continue
            for some in in_parts(cells) if cells is not None and is_part else [None]:
                check_support(
                    observed.rows(some), adata, self.setup.layer, modality.likelihood, cells=some
                )
        return data

    def _data(
        self,
        adata: AnnData | None,
        needed: NDArray[np.int64] | slice = slice(None),
        cells: NDArray[np.int64] | None = None,
    ) -> CellData:
        """Read cells; their condition is the registered one, or the one given to `train`.

        Parameters
        ----------
        adata
            The cells. Default: the model's own.
        needed
            Those whose condition must be a registered one. Default: all. Others of unknown
            condition are treated as target cells, so that both latents are available for them.
        cells
            Those whose counts are read. Default: all.

        Raises
        ------
        ValueError
            If a condition that is needed was not registered; the error lists those that were.
        """
        self._warn_if_untrained()
        chosen = self._adata(adata)
        data = self._extract(chosen, cells)
        codes = self._condition_codes(chosen, data, cells)
        if codes is None:
            return data
        if self.setup.condition_key is not None:
            check_conditions(chosen.obs, codes, needed, self.setup)
        else:
            warn_of_unknown(codes[needed])
        return data.with_codes(np.where(codes < 0, BACKGROUND + 1, codes))

    def _warn_if_untrained(self) -> None:
        """Log, once, that the results of an untrained model mean nothing."""
        if not (self.is_trained or self._warned_untrained):
            self._warned_untrained = True
            logger.warning(
                "This model has not been trained: its results are those of random weights. Call "
                "train() first."
            )

    def _condition_codes(
        self, adata: AnnData, data: CellData, cells: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64] | None:
        """Condition code per cell, -1 where unknown; ``None`` if it is known of no cell.

        Conditions that were given to `train` are looked up for `cells` only.
        """
        codes = self.setup.condition_codes(adata)
        if codes is not None or self._conditions is None or not adata.obs_names.is_unique:
            return codes
        known = self._conditions.reindex(cell_names(adata, cells))
        same = same_totals(known["total"].to_numpy(), data.totals(cells))
        codes = np.full(adata.n_obs, -1)
        codes[slice(None) if cells is None else cells] = np.where(same, known["code"], -1)
        return codes

    def _query(
        self,
        adata: AnnData | None,
        indices: ArrayLike | None,
        batch_size: int | None = None,
        *,
        need_condition: bool = True,
        refine: bool | int = False,
    ) -> Query:
        """Return a question about the cells asked for, with the default decoding.

        Their condition must be a registered one, unless it is not needed.
        """
        refinement_of(refine, self)  # raises before the cells are read
        chosen = self._adata(adata)
        cells = as_indices(indices, chosen.obs_names)
        data = self._data(adata, cells if need_condition else NO_CELLS, cells)
        refined = refined_cells(self, adata, data, refine, cells)
        names = chosen.obs_names
        return Query(self.module, data, cells, batch_size, obs_names=names, refined=refined)

    def _query_of_some(
        self,
        adata: AnnData | None,
        indices: ArrayLike | None,
        batch_size: int | None = None,
        *,
        refine: bool | int = False,
    ) -> Query:
        """Return a question as :meth:`_query` does, about at least one cell."""
        query = self._query(adata, indices, batch_size, refine=refine)
        check_some(query)
        return query

    def _batch_codes(self, batches: Batches, name: str = "transform_batch") -> list[int]:
        """Turn batch categories into codes; ``None`` gives an empty list."""
        if batches is None:
            return []
        wanted = listed(batches)
        if self.setup.batch_key is None:
            msg = f"{name} needs a batch_key; this model was set up without one."
            raise ValueError(msg)
        known = self.setup.categories[self.setup.batch_key]
        codes = [position_of(batch, known) for batch in wanted]
        unknown = [batch for batch, code in zip(wanted, codes, strict=True) if code is None]
        if unknown:
            msg = (
                f"{name}: {shown(unknown)} are not batches of this model; those are "
                f"{known}."
                f"{suggestion(unknown[0], known)}"
            )
            raise ValueError(msg)
        return [code for code in codes if code is not None]

    def _condition_code(self, condition: Level, name: str = "condition") -> int:
        """Turn the name of a condition (or its code, if none are registered) into its code."""
        names = self.setup.conditions
        code = position_of(condition, names or (BACKGROUND, BACKGROUND + 1))
        if code is not None:
            return code
        known = list(names) or "0 (background) and 1 (target)"
        msg = (
            f"{name}: {shown(condition)} is not a condition of this model; those are {known}."
            f"{suggestion(condition, names)}"
        )
        raise ValueError(msg)
