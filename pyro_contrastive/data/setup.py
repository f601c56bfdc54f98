"""The setup that a user registers for an AnnData, and reading other AnnData by it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
from anndata import AnnData, ImplicitModificationWarning
from numpy.typing import NDArray

from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.columns import (
    background_level,
    check_key,
    check_keys,
    column,
    complete_column,
    levels,
    numbers,
    texts,
)
from pyro_contrastive.data.counts import AnnDataCounts, check_anndata, check_in_memory, read_counts
from pyro_contrastive.data.design import warn_of_confounding, warn_of_few_cells
from pyro_contrastive.data.donors import warn_of_donors
from pyro_contrastive.data.features import warn_of_other_features
from pyro_contrastive.data.levels import codes_of, suggestion
from pyro_contrastive.data.oddities import (
    warn_of_categories,
    warn_of_genes_without_counts,
    warn_of_large_counts,
    warn_of_missing_as_text,
    warn_of_numbers,
    warn_of_rare_treatments,
    warn_of_repeated_names,
)
from pyro_contrastive.data.record import read_record
from pyro_contrastive.data.spelling import warn_of_spellings
from pyro_contrastive.data.support import warn_of_empty_cells, warn_of_other_data, warn_of_scale
from pyro_contrastive.observed.matrix import Matrix
from pyro_contrastive.observed.source import Observed

UNS_KEY = "_pyro_contrastive"
"""Key in ``uns`` of the record of ``setup_anndata``: JSON, so that it survives writing to disk."""
_SINGLE = ("layer", "batch_key", "labels_key", "size_factor_key", "condition_key", "sample_key")
"""Arguments that take one name."""


@dataclass(frozen=True)
class Setup:
    """The roles of the columns of ``obs``, and the categories they had.

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
    sample_key: str | None = None
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
            repeat, or the background is not one of the conditions. Data that are not
            counts cause a warning only: whether they are suitable depends on the likelihood.
        """
        check_in_memory(adata)
        for name in _SINGLE:
            if keys.get(name) is not None:
                check_key(name, keys[name], adata.obs)
        for name in ("categorical_covariate_keys", "continuous_covariate_keys"):
            given = keys.get(name)
            keys[name] = () if given is None else tuple(check_keys(name, given, adata.obs))
        if not adata.var_names.is_unique:
            repeated = adata.var_names[adata.var_names.duplicated()].unique().tolist()
            msg = (
                f"Gene names must be unique; {len(repeated)} repeat, e.g. {repeated[:3]}. "
                "Call adata.var_names_make_unique() first."
            )
            raise ValueError(msg)
        condition_key, background = keys.get("condition_key"), keys.get("background")
        keys["background"] = background_level(adata.obs, condition_key, background)
        setup = cls(**keys, genes=tuple(map(str, adata.var_names)))
        setup = replace(setup, categories=setup._read_categories(adata))
        if setup.sample_key is not None:
            texts(adata.obs, setup.sample_key)
        data = setup.extract(adata)  # checks everything now rather than during training
        warn_of_other_data(data.rows(), adata, setup.layer)
        if data.size_factor is not None:
            # Expression sums to 1 over genes, so a library size must be on the scale of counts;
            # size factors usually have mean 1.
            unit = float(data.totals().mean() / data.size_factor.mean())
            setup = replace(setup, size_factor_unit=unit)
        warn_of_empty_cells(data.rows())
        warn_of_genes_without_counts(data.rows(), adata.var_names)
        warn_of_large_counts(data.rows(), setup.layer)
        warn_of_repeated_names(adata.obs_names)
        warn_of_few_cells(data)
        warn_of_rare_treatments(data)
        covariates = setup.categorical_covariate_keys
        warn_of_confounding(data, condition_key, setup.batch_key, covariates)
        taken = (setup.batch_key, setup.labels_key, setup.size_factor_key, condition_key)
        warn_of_donors(data, adata.obs, setup.sample_key, (*taken, *covariates))
        columns = {key: texts(adata.obs, key) for key in setup.categories}
        warn_of_spellings(columns, condition_key, setup.background)
        warn_of_missing_as_text(columns, (condition_key, setup.background))
        warn_of_categories(data, setup._codes_by_key(data))
        warn_of_numbers(data, setup.continuous_covariate_keys)
        warn_of_other_features(adata.var)
        if data.continuous is not None:
            warn_of_scale(setup.continuous_covariate_keys, data.continuous)
        with warnings.catch_warnings():
            # Writing to a view makes it a separate AnnData, as the caller expects; no warning is
            # needed.
            warnings.simplefilter("ignore", ImplicitModificationWarning)
            adata.uns[UNS_KEY] = setup.to_json()
        return setup

    @classmethod
    def of(cls, adata: AnnData) -> Self:
        """Return the record that ``setup_anndata`` left.

        Raises
        ------
        ValueError
            If the AnnData was never registered, or the record is damaged or of a later version.
        """
        check_anndata(adata)
        if UNS_KEY not in adata.uns:
            msg = "This AnnData is not registered: call ContrastiveVI.setup_anndata(adata, ...)."
            raise ValueError(msg)
        return cls._of_values(read_record(adata.uns[UNS_KEY], f"adata.uns[{UNS_KEY!r}]"))

    def _codes_by_key(self, data: CellData) -> dict[str, tuple[NDArray[np.int64], list[str]]]:
        """Return codes and their names by batch and categorical covariate."""
        codes = {} if data.batch is None else {str(self.batch_key): data.batch}
        if data.categorical is not None:
            keys = self.categorical_covariate_keys
            codes |= dict(zip(keys, data.categorical.T, strict=True))
        return {key: (found, self.categories[key]) for key, found in codes.items()}

    def to_json(self) -> str:
        """Write the record as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls._of_values(json.loads(text))

    @classmethod
    def _of_values(cls, values: Mapping[str, Any]) -> Self:
        lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        return cls(**(dict(values) | lists))

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

    def extract(
        self, adata: AnnData, *, with_condition: bool = True, on_demand: bool = False
    ) -> CellData:
        """Read counts and codes of an AnnData with the registered genes and columns.

        Genes may come in another order, or among others.

        Parameters
        ----------
        adata
            The cells.
        with_condition
            Whether to read the condition too; if not, its column is ignored: see
            :meth:`condition_codes`.
        on_demand
            Read the counts of each group of cells when they are needed, not all of them now.

        Raises
        ------
        KeyError, ValueError
            As :meth:`register`; also if a registered gene is missing, or a category was not there
            when the model was set up (the error lists the known ones).
        """
        adata = self.with_genes(adata)
        condition_key = self.condition_key if with_condition else None
        counts: Matrix | Observed
        counts = (AnnDataCounts if on_demand else read_counts)(adata, self.layer)
        continuous = [numbers(adata.obs, key) for key in self.continuous_covariate_keys]
        codes = [self._codes(adata, key) for key in self.categorical_covariate_keys]
        size_factor = None
        if self.size_factor_key is not None:
            size_factor = numbers(adata.obs, self.size_factor_key)
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
        values = column(adata.obs, self.condition_key)
        return np.where(values.isna(), -1, codes_of(values, self.conditions))

    def with_genes(self, adata: AnnData) -> AnnData:
        """Return the registered genes of `adata`, in their order (as a view if that differs).

        Raises
        ------
        ValueError
            If some are missing or occur several times; the error names them.
        """
        genes = tuple(map(str, adata.var_names))
        if genes == self.genes:
            return adata
        self.check_repeats(adata)
        missing = self.missing_genes(adata)
        if missing:
            msg = (
                f"This AnnData lacks {len(missing)} of the {len(self.genes)} genes that were set "
                f"up, e.g. {missing[:3]}. Give data with all genes, or have the missing ones "
                "filled with zeros: model.prepare_query_anndata(adata, fill_missing=True)."
            )
            raise ValueError(msg)
        # By position, because the names of other genes may repeat.
        position = {gene: at for at, gene in enumerate(genes)}
        return adata[:, [position[gene] for gene in self.genes]]

    def check_repeats(self, adata: AnnData) -> None:
        """Refuse an AnnData that has a registered gene several times.

        Raises
        ------
        ValueError
            If it has, naming the genes: it is not known which one was registered.
        """
        names = adata.var_names.astype(str)
        repeated = names[names.duplicated() & names.isin(self.genes)].unique().tolist()
        if repeated:
            msg = (
                f"{len(repeated)} genes of this model occur several times in this AnnData, e.g. "
                f"{repeated[:3]}, so it is not known which one was registered. "
                "adata.var_names_make_unique() keeps the name of the first and renames the others; "
                "treat repeats as in the data the model was set up with."
            )
            raise ValueError(msg)

    def missing_genes(self, adata: AnnData) -> list[str]:
        """Return the registered genes that `adata` does not have."""
        present = set(map(str, adata.var_names))
        return [gene for gene in self.genes if gene not in present]

    def _read_categories(self, adata: AnnData) -> dict[str, list[str]]:
        keys = [self.batch_key, self.labels_key, *self.categorical_covariate_keys]
        categories = {k: levels(adata.obs, k) for k in keys if k is not None}
        if self.condition_key is not None:
            found = levels(adata.obs, self.condition_key)
            targets = [level for level in found if level != self.background]
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
        codes = codes_of(complete_column(adata.obs, key), known)
        if (codes < 0).any():
            unknown = sorted(set(texts(adata.obs, key)[codes < 0].tolist()))
            msg = (
                f"adata.obs[{key!r}] has categories the model was not set up with: {unknown}. "
                f"Known are {known}.{suggestion(unknown[0], known)}"
            )
            raise ValueError(msg)
        return codes
