"""The same model fitted again: with other labels, or to other cells."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from pyro_contrastive._tools.torch_tools import random_state
from pyro_contrastive.data.setup import UNS_KEY
from pyro_contrastive.training.history import History

if TYPE_CHECKING:
    from pyro_contrastive.methods.training import TrainingMethods

    Model = TypeVar("Model", bound=TrainingMethods)

__all__ = ["refitted", "with_conditions"]


def refitted(model: Model, adata: AnnData, seed: int | None, changes: Mapping[str, Any]) -> Model:
    """Return a new model of the same configuration, trained as `model` was.

    It starts from the initial weights that `model` had, and repeats its calls of ``train``.

    Parameters
    ----------
    model
        The model, which stays as it is.
    adata
        Cells to train on, set up as those of `model`.
    seed
        Seed of each training; ``None``: the seeds, or random states, that it had.
    changes
        Arguments of ``train`` that differ.

    Raises
    ------
    ValueError
        If the model was not trained, or was saved by an earlier version, which kept neither
        initial weights nor the arguments of its training; if an argument could not be saved.
    KeyboardInterrupt
        Also if Ctrl-C ended a training, which would otherwise return what was learned.
    """
    if model._untrained_module is None or not model._runs:
        msg = (
            "The same fit cannot be made again: this model was not trained, or was saved by a "
            "version that did not note how. Make it anew with ContrastiveVI(adata, ...) and train "
            "it."
        )
        raise ValueError(msg)
    new = copy.copy(model)
    new.module = copy.deepcopy(model._untrained_module)
    new.adata = adata
    new.is_trained = False
    new._history = History()
    new._conditions = new._trained_cells = new._stored_posteriors = None
    new._untrained_module, new._runs = None, ()
    for call in model._runs:
        own = {"seed": call.arguments.get("seed") if seed is None else seed}
        arguments = call.arguments | own | {"enable_progress_bar": False} | dict(changes)
        _refuse_lost([name for name in call.not_saved if name not in changes])
        with random_state(call.random_state if seed is None else None):
            if new.train(**arguments).interrupted:
                raise KeyboardInterrupt
    return new


def _refuse_lost(names: list[str]) -> None:
    if names:
        msg = (
            f"The same fit cannot be made again: the model was trained with {', '.join(names)}, "
            "which a file cannot hold."
        )
        raise ValueError(msg)


def with_conditions(
    model: TrainingMethods, adata: AnnData, codes: NDArray[np.int64], before: NDArray[np.int64]
) -> AnnData:
    """Return the same cells under other conditions; counts are shared, not copied.

    Parameters
    ----------
    model, adata
        The model and its cells.
    codes, before
        Condition code of each cell, to be and as it is.
    """
    key = model.setup.condition_key
    assert key is not None  # checked by the caller
    column = adata.obs[key]
    values = column.to_numpy()
    names = np.empty(int(before.max()) + 1, dtype=object)
    names[before] = values
    obs = adata.obs.copy()
    obs[key] = pd.Series(names[codes], index=obs.index).astype(column.dtype)
    layers = (
        {} if model.setup.layer is None else {model.setup.layer: adata.layers[model.setup.layer]}
    )
    made = AnnData(X=adata.X, obs=obs, var=adata.var, layers=layers, obsm=dict(adata.obsm))
    made.uns[UNS_KEY] = adata.uns.get(UNS_KEY, model.setup.to_json())
    return made
