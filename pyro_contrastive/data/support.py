"""Whether data lie in the support of a likelihood, checked before anything is computed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch.distributions import constraints

from pyro_contrastive._tools.torch_tools import tensor_of
from pyro_contrastive.data.counts import cell_names, first_of, not_counts, place
from pyro_contrastive.data.disk import counts_on_disk
from pyro_contrastive.data.fractions import (
    WHAT_ROUNDING_DOES,
    WHAT_THEY_ARE,
    look_like_corrected_counts,
    rounded_layer,
    rounding,
)
from pyro_contrastive.data.places import where_counts_are
from pyro_contrastive.likelihoods import Likelihood
from pyro_contrastive.observed.matrix import Matrix, stored_values
from pyro_contrastive.observed.source import Indices, Observed

Advise: TypeAlias = Callable[[constraints.Constraint, AnnData, str | None], str]
"""Turns a support, an AnnData and a layer into advice about data outside the support."""

COUNTS, BINARY, NONNEGATIVE = (
    constraints.nonnegative_integer,
    constraints.boolean,
    constraints.nonnegative,
)
LARGE = 100.0
"""Continuous covariates above this cause a warning; percentages do not."""
LOOKED_AT = 1000
"""Cells on disk that are read to advise the user."""
NEEDS = {
    COUNTS: "raw counts (integers from 0 up)",
    BINARY: "binary data (0 or 1)",
    NONNEGATIVE: "numbers from 0 up",
}
ADVICE = {
    BINARY: (
        'Make a layer of zeros and ones, adata.layers["binary"] = (adata.X > 0).astype("float32"), '
        'and name it: setup_anndata(adata, layer="binary").'
    ),
    NONNEGATIVE: (
        "Log-normalised values are never negative; data that are scaled or centred take "
        "likelihood=Gaussian(log1p=False)."
    ),
}


def python_advice(support: constraints.Constraint, adata: AnnData, layer: str | None) -> str:
    """Return advice, as Python code, about data outside a support."""
    if support is not COUNTS:
        return ADVICE.get(support, "")
    matrix = adata.X if layer is None else adata.layers[layer]
    fractions = f"{rounding_advice(adata, layer)} " if look_like_corrected_counts(matrix) else ""
    return (
        f"{fractions}{where_counts_are(adata, layer)} Log-normalised values take another "
        "likelihood: ContrastiveVI(adata, likelihood=Gaussian())."
    )


def rounding_advice(adata: AnnData, layer: str | None) -> str:
    """Return advice, as Python code, on rounding counts with fractions."""
    return (
        f"{WHAT_THEY_ARE} Round them into a layer, {rounding(adata, layer)}, and name it: "
        f'setup_anndata(adata, layer="{rounded_layer(adata)}"). {WHAT_ROUNDING_DOES}'
    )


def check_support(
    counts: Matrix,
    adata: AnnData,
    layer: str | None,
    likelihood: Likelihood,
    advise: Advise = python_advice,
    *,
    cells: Indices | None = None,
) -> None:
    """Refuse data outside a likelihood's support.

    Parameters
    ----------
    counts
        The data, ``[cells, genes]``.
    adata, layer
        The AnnData and the layer that they come from.
    likelihood
        Its `support` is the set of possible values. In a sparse matrix the values that are not
        stored are zeros, which must be in it too.
    advise
        Makes the last sentence of the error. Default: Python code.
    cells
        The cells of `adata` that the data belong to; default all.

    Raises
    ------
    ValueError
        If some values are outside: the error says how many and why, names the first such cell and
        gene, and says what the likelihood needs and what to do.
    """
    support = likelihood.support
    values = stored_values(counts)
    if support is COUNTS and _are_counts(values):
        return
    bad = ~support.check(tensor_of(values)).numpy()
    n_cells, n_genes = counts.shape
    n_zeros = n_cells * n_genes - values.size
    if n_zeros and not bool(support.check(torch.zeros(()))):
        found = f"{n_zeros} of its values are zeros, which are not stored"
    elif bad.any():
        first = first_of(bad, counts, cell_names(adata, cells), adata.var_names)
        found = f"{_faults(values[bad], support)}: the first is {first}"
    else:
        return
    advice = advise(support, some_cells(adata, layer), layer)
    msg = (
        f"{place(layer)} must hold {NEEDS.get(support, f'values in {support}')}, which is what "
        f"{type(likelihood).__name__} is a distribution of; but {found}. {advice}"
    )
    raise ValueError(msg.rstrip())


def check_support_of_all(
    observed: Observed,
    adata: AnnData,
    layer: str | None,
    likelihood: Likelihood,
    advise: Advise = python_advice,
) -> None:
    """Refuse data outside a likelihood's support, as :func:`check_support`, wherever they are."""
    for cells, counts in observed.blocks():
        check_support(counts, adata, layer, likelihood, advise, cells=cells)


def some_cells(adata: AnnData, layer: str | None) -> AnnData:
    """Return the cells that advice looks at: if they are on disk, the first only."""
    return adata if counts_on_disk(adata, layer) is None else adata[:LOOKED_AT]


def _are_counts(values: NDArray[np.float32]) -> bool:
    """Tell quickly whether all values are counts, as they usually are."""
    return not values.size or (values.min() >= 0 and np.array_equal(np.rint(values), values))


def _faults(values: NDArray[np.float32], support: constraints.Constraint) -> str:
    """Count what is wrong with values: negative ones, and others."""
    n_negative = int((values < 0).sum())
    rest = values[values >= 0]
    n_fractions = int((rest != np.floor(rest)).sum())
    counted = {
        "negative": n_negative,
        "not integers": n_fractions if support in {COUNTS, BINARY} else 0,
    }
    counted["above 1" if support is BINARY else "outside of it"] = values.size - sum(
        counted.values()
    )
    kinds = ", ".join(f"{n} {kind}" for kind, n in counted.items() if n)
    return f"{values.size} of its values are not ({kinds})"


def warn_of_counts(observed: Observed, layer: str | None, likelihood: Likelihood) -> None:
    """Warn if a likelihood of real numbers is about to be fitted to what looks like raw counts."""
    if likelihood.support in {COUNTS, BINARY}:
        return
    if any(not_counts(counts).any() for _, counts in observed.blocks()):
        return
    warnings.warn(
        f"{type(likelihood).__name__} is not a distribution of counts, but every value of "
        f"{place(layer)} is an integer from 0 up, as raw counts are. Normalise them first "
        "(scanpy.pp.normalize_total, scanpy.pp.log1p), or use a likelihood of counts.",
        UserWarning,
        stacklevel=3,
    )


def warn_of_other_data(observed: Observed, adata: AnnData, layer: str | None) -> None:
    """Warn that the data are not counts, which most likelihoods need."""
    n_bad, found = 0, None
    for cells, counts in observed.blocks():
        bad = not_counts(counts)
        n_bad += int(bad.sum())
        if found is None and n_bad:
            found = first_of(bad, counts, cell_names(adata, cells), adata.var_names), counts
    if found is None:
        return
    first, counts = found
    adata = some_cells(adata, layer)
    fractions = f" {rounding_advice(adata, layer)}" if look_like_corrected_counts(counts) else ""
    warnings.warn(
        f"{place(layer)} does not hold raw counts (integers from 0 up): {n_bad} of its "
        f"values are not, the first one being {first}. Gaussian() takes log-normalised values, "
        "and a Likelihood of your own may take others; the default and all other likelihoods "
        f"refuse them.{fractions} {where_counts_are(adata, layer)}",
        UserWarning,
        stacklevel=4,
    )


def warn_of_empty_cells(totals: NDArray[np.float64]) -> None:
    """Warn of cells whose total, ``[cells]``, is 0; two calls below `setup_anndata`."""
    n_empty = int((totals == 0).sum())
    if n_empty:
        warnings.warn(
            f"{n_empty} of {len(totals)} cells have no counts at all. They are kept, but "
            "carry no information; remove them with scanpy.pp.filter_cells(adata, min_counts=1).",
            UserWarning,
            stacklevel=4,
        )


def warn_of_scale(keys: tuple[str, ...], values: NDArray[np.float32]) -> None:
    """Warn of continuous covariates, ``[cells, covariates]``, too large for a network.

    Two calls below `setup_anndata`, which the stack level of the warning counts on.
    """
    sizes = np.abs(values).max(axis=0, initial=0.0)
    large = {key: float(size) for key, size in zip(keys, sizes, strict=True) if size > LARGE}
    if large:
        listed = ", ".join(f"adata.obs[{key!r}] up to {size:,.0f}" for key, size in large.items())
        warnings.warn(
            "Continuous covariates go into the networks unscaled, and these are large: "
            f"{listed}. Training may fail. Standardise them: (x - x.mean()) / x.std().",
            UserWarning,
            stacklevel=4,
        )
