"""Finding raw counts in an AnnData, to advise users who named another place."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

_LOOKED_AT = 1000
"""Number of cells examined: this only serves advice, and data may be large."""


def layer_names(adata: AnnData) -> list[str]:
    """Names of the layers. From anndata 0.13 on, ``layers`` holds X too, under the key ``None``."""
    return [name for name in adata.layers if name is not None]


def layers_of_counts(adata: AnnData, besides: str | None = None) -> list[str]:
    """Names of the layers that hold integers from 0 up, except one known not to."""
    return [
        name
        for name in layer_names(adata)
        if name != besides and look_like_counts(adata.layers[name])
    ]


def raw_has_counts(adata: AnnData) -> bool:
    """Tell whether ``adata.raw`` holds integers from 0 up, of all genes that `adata` has."""
    raw = adata.raw
    if raw is None or not adata.var_names.isin(raw.var_names).all():
        return False
    return look_like_counts(raw.X)


def look_like_counts(matrix: Any) -> bool:
    """Tell whether a matrix ``[cells, genes]`` holds integers from 0 up in its first cells."""
    first = matrix[:_LOOKED_AT]
    values = np.asarray(first.data if sp.issparse(first) else first)
    return bool((values >= 0).all() and np.array_equal(np.rint(values), values))


def new_layer(adata: AnnData) -> str:
    """Return a name for a new layer of counts."""
    return "raw_counts" if "counts" in adata.layers else "counts"


def copy_of_raw(adata: AnnData) -> str:
    """Return the line of Python that makes a layer from ``adata.raw``."""
    return f'adata.layers["{new_layer(adata)}"] = adata.raw[:, adata.var_names].X'


def where_counts_are(adata: AnnData, besides: str | None = None) -> str:
    """Return advice, as Python code, on where raw counts are: a layer, ``adata.raw``, or nowhere.

    Parameters
    ----------
    adata
        The data.
    besides
        A layer that does not hold them.
    """
    found = layers_of_counts(adata, besides)
    if found:
        others = f" (so do {found[1:]})" if found[1:] else ""
        return (
            f"adata.layers[{found[0]!r}] holds integers from 0 up{others}: if they are the raw "
            f'counts, name it: setup_anndata(adata, layer="{found[0]}").'
        )
    if raw_has_counts(adata):
        return (
            "adata.raw holds integers from 0 up: if they are the raw counts, make a layer of them, "
            f'{copy_of_raw(adata)}, and name it: setup_anndata(adata, layer="{new_layer(adata)}").'
        )
    names = sorted(layer_names(adata))
    layers = f"none of the layers {names}" if names else "no layer"
    raw = (
        "there is no adata.raw"
        if adata.raw is None
        else "adata.raw does not hold those of its genes"
    )
    return (
        f"In this AnnData {layers} holds raw counts, and {raw}: they have to be read from the "
        "source of the data."
    )
