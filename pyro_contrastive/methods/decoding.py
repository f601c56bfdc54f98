"""From what a user names to what is decoded, and back to named tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from pyro_contrastive.analysis.expression import Array, Decoding
from pyro_contrastive.data.levels import position_of, suggestion
from pyro_contrastive.methods.base import Batches, Level, ModelBase

Expression: TypeAlias = Array | pd.DataFrame
LibrarySize: TypeAlias = float | str
Covariates: TypeAlias = Mapping[str, Level] | None


class DecodingHelpers(ModelBase):
    """Genes, batches, covariates and library sizes by name."""

    def _decoding(
        self,
        gene_list: Sequence[str] | None,
        transform_batch: Batches,
        library_size: LibrarySize,
        n_samples: int,
        return_mean: bool,
        batch_size: int | None,
        covariates: Covariates,
    ) -> Decoding:
        """Check what a user asked for, and turn names into numbers."""
        genes: NDArray[np.int64] | slice = slice(None)
        if isinstance(gene_list, str):
            msg = f"gene_list must be a list of genes: [{gene_list!r}]."
            raise TypeError(msg)
        if gene_list is not None:
            gene_list = list(gene_list)  # a set or a generator too
            unknown = [gene for gene in gene_list if gene not in set(self.setup.genes)]
            if unknown:
                msg = f"gene_list: {len(unknown)} are not genes of this model, e.g. {unknown[:3]}."
                raise ValueError(msg)
            genes = np.flatnonzero(np.isin(self.setup.genes, gene_list))
        if library_size != "latent" and not _is_positive(library_size):
            msg = f"library_size must be a positive number or 'latent', not {library_size!r}."
            raise ValueError(msg)
        likelihood = self.module.model.likelihood
        if library_size != 1.0 and not likelihood.uses_library:
            msg = (
                f"library_size={library_size!r} has no meaning with {type(likelihood).__name__}: "
                "its expression has a unit of its own, and is no share of a total. Leave it at 1."
            )
            raise ValueError(msg)
        decoding = Decoding(
            site="rate" if library_size == "latent" else "scale",
            genes=genes,
            n_samples=n_samples,
            average=return_mean or n_samples == 1,
            batches=self._batch_codes(transform_batch),
            batch_size=batch_size,
        )
        return self._with_covariates(decoding, covariates)

    def _presenter(
        self,
        adata: AnnData,
        cells: NDArray[np.int64],
        decoding: Decoding,
        library_size: LibrarySize,
        return_numpy: bool | None,
    ) -> Callable[[Array], Any]:
        """Return the function that scales a result and names its cells and genes."""
        factor = 1.0 if library_size == "latent" else float(library_size)
        if not decoding.average and return_numpy is False:
            msg = "Posterior draws are returned as an array; return_numpy=False has no effect."
            warnings.warn(msg, UserWarning, stacklevel=3)
        if return_numpy or not decoding.average:
            return lambda value: value * np.float32(factor)
        genes = np.asarray(self.setup.genes)[decoding.genes]
        index = adata.obs_names[cells]
        return lambda value: pd.DataFrame(value * np.float32(factor), index=index, columns=genes)

    def _with_covariates(self, decoding: Decoding, covariates: Covariates) -> Decoding:
        """Add covariates to decode under, given as ``{key: value}``."""
        categorical: dict[int, int] = {}
        continuous: dict[int, float] = {}
        if covariates is not None and not isinstance(covariates, Mapping):
            msg = (  # type: ignore[unreachable]  # untyped callers
                "transform_covariates must be a dict, {name of a covariate: value}, not "
                f"a {type(covariates).__name__}."
            )
            raise TypeError(msg)
        for key, value in (covariates or {}).items():
            if key in self.setup.categorical_covariate_keys:
                known = self.setup.categories[key]
                code = position_of(value, known)
                if code is None:
                    msg = (
                        f"transform_covariates: {value!r} is not a level of {key!r}: {known}."
                        f"{suggestion(value, known)}"
                    )
                    raise ValueError(msg)
                categorical[self.setup.categorical_covariate_keys.index(key)] = code
            elif key in self.setup.continuous_covariate_keys:
                if not _is_finite(value):
                    msg = f"transform_covariates: {key!r} must be a finite number, not {value!r}."
                    raise ValueError(msg)
                continuous[self.setup.continuous_covariate_keys.index(key)] = float(value)
            else:
                keys = (
                    *self.setup.categorical_covariate_keys,
                    *self.setup.continuous_covariate_keys,
                )
                msg = f"transform_covariates: {key!r} is not a covariate of this model: {keys}."
                raise ValueError(msg)
        return replace(decoding, categorical=categorical, continuous=continuous)


def _is_finite(value: object) -> bool:
    """Tell whether it is a single number, neither missing nor infinite."""
    return isinstance(value, Real) and bool(np.isfinite(float(value)))


def _is_positive(value: object) -> bool:
    return _is_finite(value) and float(value) > 0  # type: ignore[arg-type]  # it is a number
