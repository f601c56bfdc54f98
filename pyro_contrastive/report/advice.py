"""Advice on data outside a likelihood's support, worded for the shell."""

from __future__ import annotations

from collections.abc import Iterable

from anndata import AnnData
from torch.distributions import constraints

from pyro_contrastive.data.fractions import (
    WHAT_ROUNDING_DOES,
    WHAT_THEY_ARE,
    look_like_corrected_counts,
    rounded_layer,
    rounding,
)
from pyro_contrastive.data.places import (
    copy_of_raw,
    layer_names,
    layers_of_counts,
    new_layer,
    raw_has_counts,
)
from pyro_contrastive.data.support import BINARY, COUNTS, NONNEGATIVE

__all__ = ["listed", "shell_advice", "where_to_look"]

_MAX_LISTED = 20


def shell_advice(support: constraints.Constraint, adata: AnnData, layer: str | None) -> str:
    """Say which options help when data are outside the support of their likelihood.

    Parameters
    ----------
    support
        The support of the likelihood.
    adata, layer
        The AnnData and the layer with the data.
    """
    others = f"--layer NAME (available: {listed(layer_names(adata))})"
    matrix = adata.X if layer is None else adata.layers[layer]
    corrected = support is COUNTS and look_like_corrected_counts(matrix)
    fractions = f"{_rounding(adata, layer)} " if corrected else ""
    advice = {
        COUNTS: f"{fractions}{where_to_look(adata, layer)} Log-normalised values take another "
        "likelihood: --likelihood gaussian.",
        BINARY: f"Name a layer of zeros and ones with {others}, or take a likelihood of counts, "
        "such as --likelihood nb.",
        NONNEGATIVE: f"Log-normalised values are never negative: name their layer with {others}. "
        "Data that are scaled or centred can be fitted in Python alone, with "
        "likelihood=Gaussian(log1p=False).",
    }
    return advice.get(support, "")


def _rounding(adata: AnnData, layer: str | None) -> str:
    """Say how to round counts with fractions."""
    return (
        f"{WHAT_THEY_ARE} Round them in Python, {rounding(adata, layer)}, write the file again, "
        f"and name the layer: --layer {rounded_layer(adata)}. {WHAT_ROUNDING_DOES}"
    )


def where_to_look(adata: AnnData, besides: str | None = None) -> str:
    """Say which option names the raw counts, if the file contains them.

    Parameters
    ----------
    adata
        The file.
    besides
        A layer that does not contain them.
    """
    found = layers_of_counts(adata, besides)
    there_are = f"available: {listed(layer_names(adata))}"
    if found:
        return (
            f"If a layer has the raw counts, name it with --layer NAME ({there_are}; integers from "
            f"0 up are in: {listed(found)})."
        )
    if raw_has_counts(adata):
        return (
            f"Integers from 0 up are in its raw: make a layer of them in Python, "
            f"{copy_of_raw(adata)}, write the file again, and name it: --layer {new_layer(adata)}."
        )
    return f"Neither its raw nor any layer holds raw counts ({there_are}) for --layer NAME to name."


def listed(names: Iterable[object]) -> str:
    """List names on one line, shortened if there are many."""
    found = [str(name) for name in names]
    more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
    return (", ".join(found[:_MAX_LISTED]) or "none") + more
