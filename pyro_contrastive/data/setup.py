"""What the user registers about an AnnData, and reading it back from any AnnData like it."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData, ImplicitModificationWarning
from numpy.typing import NDArray

from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.counts import check_anndata, check_in_memory, read_counts, row_sums
from pyro_contrastive.data.design import warn_of_confounding, warn_of_few_cells
from pyro_contrastive.data.support import warn_of_empty_cells, warn_of_other_data, warn_of_scale

UNS_KEY = "_pyro_contrastive"
"""Where ``setup_anndata`` leaves its record, as JSON, so that it survives writing to disk."""


@dataclass(frozen=True)
class Setup:
    """Which columns of ``obs`` mean what, and the categories they had.

    Made by :meth:`register`; keys as in ``setup_anndata``. ``categories`` holds the levels of each
    categorical key in code order, as strings; of the condition the background comes first.
    """

    layer: str | None = None
    batch_key: str | None = None
    labels_key: str | None = None
    size_factor_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()
    condition_key: str | None = None
    background: str | None = None
    categories: dict[str, list[str]] = field(default_factory=dict)
    genes: tuple[str, ...] = ()
    size_factor_unit: float = 1.0  # mean total counts over mean size factor, at setup

    @classmethod
    def register(cls, adata: AnnData, **keys: Any) -> Self:
        """Check `adata` and the keys given, and note them in ``adata.uns``.

        Raises
        ------
        KeyError
            If a key is not a column of ``adata.obs``; the error lists the columns.
        ValueError
            If a value of the data is missing or infinite, a column has missing values, gene names
            repeat, or the background is not one of the conditions. Data that are no counts are
            warned of: whether they will do depends on the likelihood.
        """
        for name in ("categorical_covariate_keys", "continuous_covariate_keys"):
            if isinstance(keys.get(name), str):
                msg = f"{name} must be a list of columns, not the string {keys[name]!r}."
                raise TypeError(msg)
            keys[name] = tuple(keys.get(name) or ())
        check_in_memory(adata)
        if not adata.var_names.is_unique:
            repeated = adata.var_names[adata.var_names.duplicated()].unique().tolist()
            msg = (
                f"Gene names must be unique; {len(repeated)} repeat, e.g. {repeated[:3]}. "
                "Call adata.var_names_make_unique() first."
            )
            raise ValueError(msg)
        condition_key, background = keys.get("condition_key"), keys.get("background")
        keys["background"] = _background_level(adata, condition_key, background)
        setup = cls(**keys, genes=tuple(map(str, adata.var_names)))
        setup = replace(setup, categories=setup._read_categories(adata))
        data = setup.extract(adata)  # checks everything, before any work is lost
        warn_of_other_data(data.counts, adata, setup.layer)
        if data.size_factor is not None:
            # Expression sums to 1 over genes, so a library size must be on the scale of counts;
            # size factors usually have mean 1.
            unit = float(row_sums(data.counts).mean() / data.size_factor.mean())
            setup = replace(setup, size_factor_unit=unit)
        warn_of_empty_cells(data.counts)
        warn_of_few_cells(data)
        covariates = setup.categorical_covariate_keys
        warn_of_confounding(data, condition_key, setup.batch_key, covariates)
        if data.continuous is not None:
            warn_of_scale(setup.continuous_covariate_keys, data.continuous)
        with warnings.catch_warnings():
            # Writing to a view makes it an AnnData of its own. The caller asked for the writing.
            warnings.simplefilter("ignore", ImplicitModificationWarning)
            adata.uns[UNS_KEY] = setup.to_json()
        return setup

    @classmethod
    def of(cls, adata: AnnData) -> Self:
        """Return the record ``setup_anndata`` left.

        Raises
        ------
        ValueError
            If the AnnData was never registered.
        """
        check_anndata(adata)
        if UNS_KEY not in adata.uns:
            msg = "This AnnData is not registered: call ContrastiveVI.setup_anndata(adata, ...)."
            raise ValueError(msg)
        return cls.from_json(adata.uns[UNS_KEY])

    def to_json(self) -> str:
        """Write the record as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        return cls(**(values | lists))

    @property
    def n_batch(self) -> int:
        """Number of batches (1 without a batch key)."""
        return len(self.categories[self.batch_key]) if self.batch_key else 1

    @property
    def n_cats_per_cov(self) -> tuple[int, ...]:
        """Number of levels of each categorical covariate."""
        return tuple(len(self.categories[k]) for k in self.categorical_covariate_keys)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Conditions in code order, background first; empty without a condition key."""
        return tuple(self.categories[self.condition_key]) if self.condition_key else ()

    def extract(self, adata: AnnData, *, with_condition: bool = True) -> CellData:
        """Read counts and codes of an AnnData with the registered genes and columns.

        Genes may come in another order, or among others.

        Parameters
        ----------
        adata
            The cells.
        with_condition
            Read the condition too; else its column is not looked at: see :meth:`condition_codes`.

        Raises
        ------
        KeyError, ValueError
            As :meth:`register`; also if a registered gene is missing, or a category was not there
            when the model was set up (the error lists the known ones).
        """
        adata = self.with_genes(adata)
        condition_key = self.condition_key if with_condition else None
        counts = read_counts(adata, self.layer)
        continuous = [self._numbers(adata, key) for key in self.continuous_covariate_keys]
        codes = [self._codes(adata, key) for key in self.categorical_covariate_keys]
        size_factor = None
        if self.size_factor_key is not None:
            size_factor = self._numbers(adata, self.size_factor_key)
            if (size_factor <= 0).any():
                msg = f"adata.obs[{self.size_factor_key!r}] must be positive in every cell."
                raise ValueError(msg)
            size_factor = size_factor * np.float32(self.size_factor_unit)
        return CellData(
            counts=counts,
            condition=self._codes(adata, condition_key) if condition_key else None,
            conditions=self.conditions,
            batch=self._codes(adata, self.batch_key) if self.batch_key else None,
            categorical=np.stack(codes, axis=1) if codes else None,
            continuous=np.stack(continuous, axis=1) if continuous else None,
            size_factor=size_factor,
        )

    def condition_codes(self, adata: AnnData) -> NDArray[np.int64] | None:
        """Condition code of each cell, -1 where it has none of the registered conditions.

        ``None`` without a condition key. The column may hold missing values, or be missing itself.
        """
        if self.condition_key is None:
            return None
        if self.condition_key not in adata.obs:
            return np.full(adata.n_obs, -1)
        column = adata.obs[self.condition_key]
        codes = pd.Index(self.conditions).get_indexer(column.astype(str)).astype(np.int64)
        return np.where(column.isna(), -1, codes)

    def with_genes(self, adata: AnnData) -> AnnData:
        """Return the registered genes of `adata`, in their order (a view if that takes a change).

        Raises
        ------
        ValueError
            If some are missing, naming them.
        """
        genes = tuple(map(str, adata.var_names))
        if genes == self.genes:
            return adata
        missing = self.missing_genes(adata)
        if missing:
            msg = (
                f"This AnnData lacks {len(missing)} of the {len(self.genes)} genes that were set "
                f"up, e.g. {missing[:3]}. Give data with all genes, or have the missing ones "
                "filled with zeros: model.prepare_query_anndata(adata, fill_missing=True)."
            )
            raise ValueError(msg)
        return adata[:, list(self.genes)]

    def missing_genes(self, adata: AnnData) -> list[str]:
        """Return the registered genes that `adata` does not have."""
        present = set(map(str, adata.var_names))
        return [gene for gene in self.genes if gene not in present]

    def _read_categories(self, adata: AnnData) -> dict[str, list[str]]:
        keys = [self.batch_key, self.labels_key, *self.categorical_covariate_keys]
        categories = {k: _levels(adata, k) for k in keys if k is not None}
        if self.condition_key is not None:
            levels = _levels(adata, self.condition_key)
            targets = [level for level in levels if level != self.background]
            if not targets:
                msg = (
                    f"All cells have {self.condition_key} = {self.background!r}, the background; "
                    "there are no target cells to compare them with."
                )
                raise ValueError(msg)
            categories[self.condition_key] = [str(self.background), *targets]
        return categories

    def _codes(self, adata: AnnData, key: str) -> NDArray[np.int64]:
        known = self.categories[key]
        values = _column(adata, key)
        codes = pd.Index(known).get_indexer(values).astype(np.int64)
        if (codes < 0).any():
            unknown = sorted(set(values[codes < 0].tolist()))
            msg = (
                f"adata.obs[{key!r}] has categories the model was not set up with: {unknown}. "
                f"Known are {known}."
            )
            raise ValueError(msg)
        return codes

    @staticmethod
    def _numbers(adata: AnnData, key: str) -> NDArray[np.float32]:
        _column(adata, key)
        try:
            values = adata.obs[key].to_numpy(dtype=np.float32)
        except (TypeError, ValueError) as error:
            msg = f"adata.obs[{key!r}] must hold numbers, not {adata.obs[key].dtype}."
            raise ValueError(msg) from error
        if not np.isfinite(values).all():
            n_bad = int((~np.isfinite(values)).sum())
            msg = f"adata.obs[{key!r}] is infinite in {n_bad} cells; drop or replace these values."
            raise ValueError(msg)
        return values


def _column(adata: AnnData, key: str) -> NDArray[np.str_]:
    """Return a column of obs as strings, refusing missing values."""
    if key not in adata.obs:
        msg = f"{key!r} is not a column of adata.obs; the columns are {list(adata.obs.columns)}."
        raise KeyError(msg)
    column = adata.obs[key]
    if column.isna().any():
        msg = (
            f"adata.obs[{key!r}] is missing (NaN) in {int(column.isna().sum())} cells. Fill it in, "
            f"or drop these cells: adata[adata.obs[{key!r}].notna()].copy()."
        )
        raise ValueError(msg)
    return column.astype(str).to_numpy(dtype=str)


def _levels(adata: AnnData, key: str) -> list[str]:
    """Distinct values of a column as strings: by category where it has them, else sorted."""
    values = _column(adata, key)
    order = adata.obs[key].astype("category").cat.codes.to_numpy()
    first = np.unique(order, return_index=True)[1]  # unused categories do not occur
    return list(dict.fromkeys(values[first].tolist()))


def _background_level(adata: AnnData, condition_key: str | None, background: object) -> str | None:
    """Return the value of the condition that is background, as a string."""
    if condition_key is None:
        if background is not None:
            msg = "background= says which condition is the control; give condition_key= too."
            raise ValueError(msg)
        return None
    levels = _levels(adata, condition_key)
    if background is None or not np.isscalar(background):
        given = "" if background is None else f", not {background!r}"
        msg = f"condition_key={condition_key!r} needs background=, one of {levels}{given}."
        raise ValueError(msg)
    # 0 is the background of a column of 0.0 and 1.0, or of False and True, whatever its string.
    equal = (adata.obs[condition_key] == background).to_numpy(dtype=bool)
    named = str(_column(adata, condition_key)[equal][0]) if equal.any() else str(background)
    if named not in levels:
        msg = (
            f"background={background!r} must be one of the values of "
            f"adata.obs[{condition_key!r}]: {levels}."
        )
        raise ValueError(msg)
    return named
