"""Checks of the design: whether background and target cells can be compared at all."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.data.cell_data import CellData

MIN_CELLS = 10
"""Smaller populations cause a warning: by default a tenth of each is held out."""


def warn_of_confounding(
    data: CellData, condition_key: str | None, batch_key: str | None, covariates: tuple[str, ...]
) -> None:
    """Warn if a batch or covariate separates background from target: no value occurs in both.

    Two calls below `setup_anndata`.

    Parameters
    ----------
    data
        The cells.
    condition_key, batch_key, covariates
        The columns of ``obs`` they come from; `covariates` are the categorical ones.
    """
    if data.condition is None:
        return
    codes = {} if data.batch is None else {batch_key: data.batch}
    if data.categorical is not None:
        codes |= dict(zip(covariates, data.categorical.T, strict=True))
    is_target = data.condition != BACKGROUND
    confounded = [key for key, values in codes.items() if not _occurs_in_both(values, is_target)]
    if not confounded:
        return
    columns = " and ".join(f"adata.obs[{key!r}]" for key in confounded)
    warnings.warn(
        f"No value of {columns} occurs in both background and target cells: it determines "
        f"adata.obs[{condition_key!r}], so that no model can separate its effect from that of the "
        "treatment. It is an input of encoders and decoder, so the response may be attributed to "
        "it and be missing from the salient latent, or differences between batches may appear in "
        "the salient latent as a response; the background latent may look mixed for either "
        "reason. Leave the column out, and read the salient latent as treatment and batch "
        "together; or name one whose values occur in both, such as the donor where each donor has "
        "treated and untreated cells.",
        UserWarning,
        stacklevel=4,
    )


def warn_of_few_cells(data: CellData) -> None:
    """Warn of fewer than 10 background or target cells; two calls below `setup_anndata`."""
    if data.condition is None:
        return
    n_background = int((data.condition == BACKGROUND).sum())
    numbers = {"background": n_background, "target": len(data) - n_background}
    few = [f"{n} {name} cell{'s' * (n != 1)}" for name, n in numbers.items() if n < MIN_CELLS]
    if not few:
        return
    warnings.warn(
        f"There {'is' if few[0].startswith('1 ') else 'are'} only {' and '.join(few)}, which is "
        f"fewer than {MIN_CELLS}. What the conditions share and how they differ is learned from "
        "these few cells, seen in every epoch; and of fewer than 10 no cell is held out by "
        "default, so there is no held-out ELBO for early stopping to use. Do not rely on the "
        "result; is background= the value you mean?",
        UserWarning,
        stacklevel=4,
    )


def _occurs_in_both(values: NDArray[np.int64], is_target: NDArray[np.bool_]) -> bool:
    """Tell whether some value occurs both where `is_target` holds and where it does not."""
    return bool(np.intersect1d(values[is_target], values[~is_target]).size)
