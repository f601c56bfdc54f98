"""What the user registers about an AnnData, and reading it back from any AnnData like it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.counts import read_counts, row_sums

UNS_KEY = "_pyro_contrastive"
"""Where ``setup_anndata`` leaves its record, as JSON, so that it survives writing to disk."""


@dataclass(frozen=True)
class Setup:
    """Which columns of ``obs`` mean what, and the categories they had.

    Made by :meth:`register`; keys as in ``setup_anndata``. ``categories`` holds the levels of each
    categorical key in code order; of the condition the background comes first.
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

    @classmethod
    def register(cls, adata: AnnData, **keys: Any) -> Self:
        """Check `adata` and the keys given, and note them in ``adata.uns``.

        Raises
        ------
        KeyError
            If a key is not a column of ``adata.obs``; the error lists the columns.
        ValueError
            If the counts are not counts, a column has missing values, gene names repeat, or the
            background is not one of the conditions.
        """
        for name in ("categorical_covariate_keys", "continuous_covariate_keys"):
            if isinstance(keys.get(name), str):
                msg = f"{name} must be a list of columns, not the string {keys[name]!r}."
                raise TypeError(msg)
            keys[name] = tuple(keys.get(name) or ())
        if not adata.var_names.is_unique:
            repeated = adata.var_names[adata.var_names.duplicated()].unique().tolist()
            msg = (
                f"Gene names must be unique; {len(repeated)} repeat, e.g. {repeated[:3]}. "
                "Call adata.var_names_make_unique() first."
            )
            raise ValueError(msg)
        setup = cls(**keys, genes=tuple(map(str, adata.var_names)))
        setup = cls(**keys, genes=setup.genes, categories=setup._read_categories(adata))
        data = setup.extract(adata)  # checks everything, before any work is lost
        n_empty = int((row_sums(data.counts) == 0).sum())
        if n_empty:
            warnings.warn(
                f"{n_empty} of {adata.n_obs} cells have no counts at all. They are kept, but tell "
                "nothing; remove them with scanpy.pp.filter_cells(adata, min_counts=1).",
                UserWarning,
                stacklevel=3,
            )
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

    def extract(self, adata: AnnData) -> CellData:
        """Read counts and codes of an AnnData with the same genes and columns.

        Raises
        ------
        KeyError, ValueError
            As :meth:`register`; also if the genes differ from the registered ones, or a category
            was not there when the model was set up (the error lists the known ones).
        """
        self._check_genes(adata)
        counts = read_counts(adata, self.layer)
        continuous = [self._numbers(adata, key) for key in self.continuous_covariate_keys]
        codes = [self._codes(adata, key) for key in self.categorical_covariate_keys]
        size_factor = None
        if self.size_factor_key is not None:
            size_factor = self._numbers(adata, self.size_factor_key)
            if (size_factor <= 0).any():
                msg = f"adata.obs[{self.size_factor_key!r}] must be positive in every cell."
                raise ValueError(msg)
        return CellData(
            counts=counts,
            condition=self._codes(adata, self.condition_key) if self.condition_key else None,
            batch=self._codes(adata, self.batch_key) if self.batch_key else None,
            categorical=np.stack(codes, axis=1) if codes else None,
            continuous=np.stack(continuous, axis=1) if continuous else None,
            size_factor=size_factor,
        )

    def _check_genes(self, adata: AnnData) -> None:
        genes = tuple(map(str, adata.var_names))
        if genes == self.genes:
            return
        missing = [g for g in self.genes if g not in set(genes)]
        if missing:
            what = f"lacks {len(missing)} of the {len(self.genes)} genes, e.g. {missing[:3]}"
        else:
            what = "has the genes in another order, or further ones"
        msg = (
            f"This AnnData {what} of the one the model was set up with. "
            "Select the model's genes in their order: adata[:, model.genes]."
        )
        raise ValueError(msg)

    def _read_categories(self, adata: AnnData) -> dict[str, list[str]]:
        keys = [self.batch_key, self.labels_key, *self.categorical_covariate_keys]
        categories = {k: _levels(_column(adata, k)) for k in keys if k is not None}
        if self.condition_key is None:
            if self.background is not None:
                msg = "background= says which condition is the control; give condition_key= too."
                raise ValueError(msg)
            return categories
        levels = _levels(_column(adata, self.condition_key))
        if self.background not in levels:
            msg = (
                f"background={self.background!r} must be one of the values of "
                f"adata.obs[{self.condition_key!r}]: {levels}."
            )
            raise ValueError(msg)
        targets = [level for level in levels if level != self.background]
        if not targets:
            msg = f"adata.obs[{self.condition_key!r}] has only background cells; no target cells."
            raise ValueError(msg)
        categories[self.condition_key] = [str(self.background), *targets]
        return categories

    def _codes(self, adata: AnnData, key: str) -> NDArray[np.int64]:
        known = self.categories[key]
        values = _column(adata, key)
        codes = pd.Categorical(values, categories=known).codes.astype(np.int64)
        if (codes < 0).any():
            unknown = sorted(set(values[codes < 0]))
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
            msg = f"adata.obs[{key!r}] must be numbers."
            raise ValueError(msg) from error
        if not np.isfinite(values).all():
            msg = f"adata.obs[{key!r}] has values that are not finite."
            raise ValueError(msg)
        return values


def _column(adata: AnnData, key: str) -> NDArray[np.str_]:
    """Return a column of obs as strings, refusing missing values."""
    if key not in adata.obs:
        msg = f"{key!r} is not a column of adata.obs; the columns are {list(adata.obs.columns)}."
        raise KeyError(msg)
    column = adata.obs[key]
    if column.isna().any():
        msg = f"adata.obs[{key!r}] is missing in {int(column.isna().sum())} cells."
        raise ValueError(msg)
    return column.astype(str).to_numpy(dtype=str)


def _levels(values: Sequence[str] | NDArray[np.str_]) -> list[str]:
    return [str(v) for v in np.unique(np.asarray(values))]
