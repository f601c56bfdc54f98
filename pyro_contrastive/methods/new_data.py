"""Checks of data other than the model's own: missing genes, unknown conditions."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from pyro_contrastive.data.levels import suggestion
from pyro_contrastive.data.setup import Setup


def check_filled(missing: list[str], genes: list[str], adata: AnnData) -> None:
    """Refuse to fill in all genes, and warn if most of them are filled in.

    Raises
    ------
    ValueError
        If no gene of the model is there.
    """
    found = f"its gene names are like {list(adata.var_names[:3])}, the model's like {genes[:3]}"
    if len(missing) == len(genes):
        msg = f"This AnnData has none of the model's {len(genes)} genes: {found}."
        raise ValueError(msg)
    if 2 * len(missing) > len(genes):
        warnings.warn(
            f"{len(missing)} of the model's {len(genes)} genes are missing and filled with zeros, "
            f"which the model takes for observed: {found}. Do not rely on the latents.",
            UserWarning,
            stacklevel=3,
        )


def warn_of_unknown(codes: NDArray[np.int64]) -> None:
    """Warn of cells that were not given to `train`, where their condition matters."""
    n_unknown = int((codes < 0).sum())
    if n_unknown:
        warnings.warn(
            f"{n_unknown} of these cells were neither background nor target when the model was "
            "trained (cells are known by name and total count). They are taken for target cells, "
            "with a salient latent, as in scvi-tools; background cells among them would be decoded "
            "wrongly. To avoid this, set the data up with condition_key= and background=.",
            UserWarning,
            stacklevel=4,
        )


def check_conditions(
    obs: pd.DataFrame, codes: NDArray[np.int64], needed: NDArray[np.int64] | slice, setup: Setup
) -> None:
    """Refuse cells of unregistered conditions, where their condition matters."""
    unknown = codes[needed] < 0
    if not unknown.any():
        return
    key = setup.condition_key
    if key in obs:
        values = sorted({str(value) for value in obs[key].iloc[needed][unknown]})
        found = f"adata.obs[{key!r}] holds {values} there"
        hint = suggestion(values[0], setup.conditions)
    else:
        hint = ""
        found = f"adata.obs has no column {key!r}"
    msg = (
        f"{int(unknown.sum())} of these cells have no condition the model was set up with: {found}."
        f" Known are {list(setup.conditions)}.{hint} It decides whether a cell is decoded with its "
        "salient latent; latents and library sizes are available without."
    )
    raise ValueError(msg)
