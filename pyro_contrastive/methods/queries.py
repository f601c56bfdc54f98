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
    return np.flatnonzero(np.isin(setup.genes, known_genes("gene_list", gene_list, setup.genes)))


def known_genes(
    argument: str, given: object, genes: Sequence[str], of: str = "this model"
) -> list[str]:
    """Return the names in a list of genes, refusing anything else.

    Parameters
    ----------
    argument
        Name of the argument, for the error.
    given
        The list; a set, a generator or the keys of a dictionary will do.
    genes
        The names that may be in it.
    of
        What these are the genes of, for the error.

    Raises
    ------
    TypeError
        If it is not a list of strings.
    ValueError
        If a name is not among `genes`, or is there twice.
    """
    if isinstance(given, str):
        msg = f"{argument} must be a list of genes: [{given!r}]."
        raise TypeError(msg)
    is_list = isinstance(given, Iterable) and not isinstance(given, pd.DataFrame)
    names: list[Any] = list(given) if is_list else []  # type: ignore[call-overload]  # it is one
    others = [name for name in names if not isinstance(name, str)]
    if not is_list or others:
        what = f"it holds {shown(others[0])}" if others else f"not {shown(given)}"
        msg = f"{argument} must be a list of names of genes, which are strings; {what}."
        raise TypeError(msg)
    known = set(genes)
    unknown = [name for name in names if name not in known]
    if unknown:
        msg = (
            f"{argument}: {len(unknown)} are not genes of {of}, e.g. {unknown[:3]}."
            f"{suggestion(unknown[0], genes)}"
        )
        raise ValueError(msg)
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        msg = f"{argument} names {len(twice)} genes more than once, e.g. {twice[:3]}."
        raise ValueError(msg)
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
