"""Turn the user's names into settings of the decoder, and its output into named tables."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive._tools.arguments import shown
from pyro_contrastive.analysis.decoding import Array
from pyro_contrastive.analysis.query import EXPRESSION_SITES, Decoding, Query
from pyro_contrastive.data.levels import position_of, suggestion
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.methods.base import Batches, Level, ModelBase

Expression: TypeAlias = Array | pd.DataFrame
LibrarySize: TypeAlias = float | str
Covariates: TypeAlias = Mapping[str, Level] | None
Quantity: TypeAlias = Literal["scale", "mean"]


def decoding_of(
    model: ModelBase,
    *,
    gene_list: Sequence[str] | None = None,
    transform_batch: Batches = None,
    library_size: LibrarySize = 1.0,
    n_samples: int = 1,
    return_mean: bool = False,
    transform_covariates: Covariates = None,
    quantity: Quantity = "scale",
) -> Decoding:
    """Check what a user asked for, and turn names into numbers.

    The arguments are those of ``get_normalized_expression``.

    Raises
    ------
    TypeError, ValueError
        If a name is unknown, or a value has no meaning for the model.
    """
    genes = _gene_positions(gene_list, model.setup)
    _check_library_size(library_size, model)
    batches = model._batch_codes(transform_batch)
    categorical, continuous = _covariate_codes(transform_covariates, model.setup)
    return Decoding(
        site=_site(quantity, of_counts=library_size == "latent"),
        genes=genes,
        n_samples=n_samples,
        average=return_mean or n_samples == 1,
        batches=batches,
        categorical=categorical,
        continuous=continuous,
    )


def _site(quantity: str, *, of_counts: bool) -> str:
    """Return the site of the model that is decoded."""
    return EXPRESSION_SITES[quantity][of_counts]


def named(
    model: ModelBase,
    query: Query,
    value: Array,
    library_size: LibrarySize = 1.0,
    return_numpy: bool | None = None,
) -> Expression:
    """Scale decoded expression, and name its cells and genes.

    Parameters
    ----------
    model, query
        The model, and the query that it answered.
    value
        ``[cells, genes]``, or ``[n_samples, cells, genes]``, which stays an array.
    library_size, return_numpy
        As in ``get_normalized_expression``.
    """
    scaled = value * np.float32(1.0 if library_size == "latent" else float(library_size))
    if return_numpy or not query.decoding.average:
        return scaled
    genes = np.asarray(model.setup.genes)[query.decoding.genes]
    return pd.DataFrame(scaled, index=query.names, columns=genes)


def warn_if_draws_are_tables(query: Query, return_numpy: bool | None) -> None:
    """Warn where a data frame is asked for, but posterior draws have three axes."""
    if not query.decoding.average and return_numpy is False:
        msg = "Posterior draws are returned as an array; return_numpy=False has no effect."
        warnings.warn(msg, UserWarning, stacklevel=3)


def _gene_positions(gene_list: Sequence[str] | None, setup: Setup) -> NDArray[np.int64] | slice:
    """Return the positions of genes, in the model's order."""
    if gene_list is None:
        return slice(None)
    asked = _genes(gene_list)
    known = set(setup.genes)
    unknown = [gene for gene in asked if gene not in known]
    if unknown:
        msg = (
            f"gene_list: {len(unknown)} are not genes of this model, e.g. {unknown[:3]}."
            f"{suggestion(unknown[0], setup.genes)}"
        )
        raise ValueError(msg)
    twice = [gene for gene, n in Counter(asked).items() if n > 1]
    if twice:
        msg = (
            f"gene_list names {len(twice)} genes more than once, e.g. {twice[:3]}. Genes are "
            "returned once each, in the model's order: name each once."
        )
        raise ValueError(msg)
    return np.flatnonzero(np.isin(setup.genes, asked))


def _genes(gene_list: object) -> list[str]:
    """Return the names in a list of genes, refusing anything else."""
    if isinstance(gene_list, str):
        msg = f"gene_list must be a list of genes: [{gene_list!r}]."
        raise TypeError(msg)
    must_be = "gene_list must be a list of names of genes, which are strings;"
    if not isinstance(gene_list, Iterable) or isinstance(gene_list, pd.DataFrame):
        msg = f"{must_be} not {shown(gene_list)}."
        raise TypeError(msg)
    names: list[Any] = list(gene_list)  # a set or a generator, too
    others = [name for name in names if not isinstance(name, str)]
    if others:
        msg = f"{must_be} it holds {shown(others[0])}."
        raise TypeError(msg)
    return names


def _check_library_size(library_size: LibrarySize, model: ModelBase) -> None:
    if library_size != "latent" and not _is_positive(library_size):
        msg = f"library_size must be a positive number or 'latent', not {library_size!r}."
        raise ValueError(msg)
    likelihood = model.module.model.likelihood
    if library_size != 1.0 and not likelihood.uses_library:
        msg = (
            f"library_size={library_size!r} has no meaning with {type(likelihood).__name__}: "
            "its expression has a unit of its own and is not a share of a total. Leave it at 1."
        )
        raise ValueError(msg)


def _covariate_codes(
    covariates: Covariates, setup: Setup
) -> tuple[dict[int, int], dict[int, float]]:
    """Return the categorical and the continuous covariates to decode under, by column."""
    categorical: dict[int, int] = {}
    continuous: dict[int, float] = {}
    if covariates is not None and not isinstance(covariates, Mapping):
        msg = (  # type: ignore[unreachable]  # untyped callers
            "transform_covariates must be a dict, {name of a covariate: value}, not "
            f"a {type(covariates).__name__}."
        )
        raise TypeError(msg)
    for key, value in (covariates or {}).items():
        if key in setup.categorical_covariate_keys:
            column = setup.categorical_covariate_keys.index(key)
            categorical[column] = _level_code(key, value, setup)
        elif key in setup.continuous_covariate_keys:
            if not _is_finite(value):
                msg = f"transform_covariates: {key!r} must be a finite number, not {value!r}."
                raise ValueError(msg)
            continuous[setup.continuous_covariate_keys.index(key)] = float(value)
        else:
            keys = (*setup.categorical_covariate_keys, *setup.continuous_covariate_keys)
            msg = f"transform_covariates: {key!r} is not a covariate of this model: {keys}."
            raise ValueError(msg)
    return categorical, continuous


def _level_code(key: str, value: Any, setup: Setup) -> int:
    known = setup.categories[key]
    code = position_of(value, known)
    if code is None:
        msg = (
            f"transform_covariates: {value!r} is not a level of {key!r}: {known}."
            f"{suggestion(value, known)}"
        )
        raise ValueError(msg)
    return code


def _is_finite(value: object) -> bool:
    """Tell whether it is a single number, neither missing nor infinite."""
    return isinstance(value, Real) and bool(np.isfinite(float(value)))


def _is_positive(value: object) -> bool:
    return _is_finite(value) and float(value) > 0  # type: ignore[arg-type]  # it is a number
