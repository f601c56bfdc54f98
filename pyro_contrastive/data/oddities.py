"""Warnings of data that are possible, but probably not what the user means to analyse.

Every function warns from two calls below ``setup_anndata``, on which the stack levels count.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.counts import place
from pyro_contrastive.observed.matrix import Matrix, stored_values

EXACT = 2**24
"""Single precision holds every integer up to this one."""
FEWEST_OF_A_TREATMENT = 5
"""Treatments of fewer cells cause a warning."""
FOLLOWS = 0.95
"""Correlation with the condition above which a covariate is said to follow it."""
_LISTED = 3
_MISSING = {"", "nan", "NaN", "NA", "N/A", "n/a", "<NA>", "None", "null", "NaT"}
"""How missing values look when they were turned into text."""


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=5)


def _few(names: Sequence[object]) -> str:
    """List a few names."""
    return f"{', '.join(map(repr, names[:_LISTED]))}{' ...' if len(names) > _LISTED else ''}"


def warn_of_genes_without_counts(counts: Matrix, genes: pd.Index) -> None:
    """Warn of genes that are 0 in all cells."""
    seen = np.asarray((counts != 0).sum(axis=0)).ravel() > 0
    if seen.all() or not seen.any():  # without any counts, the cells have caused a warning
        return
    _warn(
        f"{int((~seen).sum())} of {len(genes)} genes have no counts in any cell, e.g. "
        f"{_few(genes[~seen].tolist())}. They are modelled like the others, and tell nothing; "
        "leave them out with scanpy.pp.filter_genes(adata, min_counts=1)."
    )


def warn_of_large_counts(counts: Matrix, layer: str | None) -> None:
    """Warn of counts that single precision rounds."""
    largest = float(stored_values(counts).max(initial=0.0))
    if largest > EXACT:
        _warn(
            f"{place(layer)} has values up to {largest:,.0f}. Counts above 2^24 (16,777,216) are "
            "rounded, since the model works in single precision, and training may fail. Are these "
            "counts of molecules?"
        )


def warn_of_repeated_names(names: pd.Index) -> None:
    """Warn of cells that share a name."""
    if not names.is_unique:
        repeated = names[names.duplicated()].unique().tolist()
        _warn(
            f"Cell names repeat, e.g. {_few(repeated)}. Cells are recognised by their names: "
            "which of them trained will not be known, nor the results of one from those of "
            "another in a table. Call adata.obs_names_make_unique() first."
        )


def warn_of_missing_as_text(
    columns: Mapping[str, NDArray[np.str_]], background: tuple[str | None, str | None]
) -> None:
    """Warn of values such as ``'nan'``, which were missing before they were turned into text.

    The key of the condition and its `background`, which the user named, are left alone.
    """
    for key, values in columns.items():
        names, sizes = np.unique(values, return_counts=True)
        found = [
            (str(name), int(size))
            for name, size in zip(names, sizes, strict=True)
            if str(name).strip() in _MISSING and (key, name) != background
        ]
        for name, size in found:
            _warn(
                f"adata.obs[{key!r}] is {name!r} in {size} of {len(values)} cells, as missing "
                "values are when they have become text. It is treated as a value like the others. "
                f"To leave these cells out: adata[adata.obs[{key!r}] != {name!r}].copy()."
            )


def warn_of_rare_treatments(data: CellData) -> None:
    """Warn of treatments that few cells had."""
    if data.condition is None or len(data.conditions) <= BACKGROUND + 2:
        return  # a single treatment is the population of target cells, which is checked as such
    sizes = np.bincount(data.condition, minlength=len(data.conditions))
    rare = [
        (name, int(size))
        for name, size in zip(data.conditions[1:], sizes[1:], strict=True)
        if 0 < size < FEWEST_OF_A_TREATMENT
    ]
    if not rare:
        return
    some = ", ".join(f"{name!r} ({size})" for name, size in rare[:_LISTED])
    _warn(
        f"{len(rare)} of {len(sizes) - 1} treatments have fewer than {FEWEST_OF_A_TREATMENT} "
        f"cells: {some}{' ...' if len(rare) > _LISTED else ''}. What is said of them rests on "
        "these few cells; leave them out, or join treatments that are alike."
    )


def warn_of_categories(
    data: CellData, columns: Mapping[str, tuple[NDArray[np.int64], list[str]]]
) -> None:
    """Warn of batches and covariates that are constant, or have values in one condition only.

    Parameters
    ----------
    data
        The cells.
    columns
        By key, the code of each cell and the names of the codes. A column of which no value occurs
        in both conditions is left to `warn_of_confounding`.
    """
    for key, (codes, names) in columns.items():
        if len(np.unique(codes)) == 1:
            _warn(_constant(key, names[codes[0]]))
        elif data.condition is not None:
            text = _one_sided(key, codes, names, data.condition != BACKGROUND)
            if text:
                _warn(text)


def _one_sided(
    key: str, codes: NDArray[np.int64], names: list[str], is_target: NDArray[np.bool_]
) -> str:
    """Describe the values that only target or only background cells have; empty if none are."""
    in_target = np.bincount(codes[is_target], minlength=len(names)) > 0
    in_background = np.bincount(codes[~is_target], minlength=len(names)) > 0
    one_sided = np.flatnonzero(in_target ^ in_background)
    if not len(one_sided) or not (in_target & in_background).any():
        return ""
    some = ", ".join(
        f"{names[code]!r} (only {'target' if in_target[code] else 'background'} cells)"
        for code in one_sided[:_LISTED].tolist()
    )
    return (
        f"{len(one_sided)} of {len(names)} values of adata.obs[{key!r}] occur in one condition "
        f"only: {some}{' ...' if len(one_sided) > _LISTED else ''}. In these cells the effect of "
        "the value cannot be told from that of the treatment, and differences between cells of "
        "the two conditions may be part of it."
    )


def warn_of_numbers(data: CellData, keys: Sequence[str]) -> None:
    """Warn of continuous covariates that are constant, or that follow the condition."""
    if data.continuous is None:
        return
    is_target = None if data.condition is None else data.condition != BACKGROUND
    for key, values in zip(keys, data.continuous.T.astype(np.float64), strict=True):
        if values.min() == values.max():
            _warn(_constant(key, f"{values[0]:g}"))
            continue
        if is_target is None or not is_target.any() or is_target.all():
            continue
        correlation = float(np.corrcoef(values, is_target)[0, 1])
        if abs(correlation) > FOLLOWS:
            _warn(
                f"adata.obs[{key!r}] follows the condition (correlation {correlation:.2f} with "
                "being a target cell). As a covariate it is an input of encoders and decoder, so "
                "that the response may be attributed to it and be missing from the salient "
                "latent. Leave it out."
            )


def _constant(key: str, value: str) -> str:
    return (
        f"adata.obs[{key!r}] is {value!r} in all cells, so there is nothing to correct for; leave "
        "it out."
    )


def warn_of_many_latents(n_genes: int, **sizes: int) -> None:
    """Warn of latents with more dimensions than there are genes; one call below a constructor."""
    for name, size in sizes.items():
        if size > n_genes:
            warnings.warn(
                f"{name}={size} is more than there are genes ({n_genes}): most dimensions can have "
                "nothing to say. 10 is usual for thousands of genes.",
                UserWarning,
                stacklevel=3,
            )
