"""Small cells for odd inputs, and models of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import anndata as ad
import numpy as np

from pyro_contrastive import ContrastiveVI, settings
from pyro_contrastive.testing import SimulationSettings, simulate

N_CELLS, N_GENES = 40, 15
SMALL: dict[str, Any] = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
SETUP: dict[str, Any] = {"condition_key": "condition", "background": "control"}


@cache
def _made() -> ad.AnnData:
    cells = simulate(SimulationSettings(n_background=20, n_target=20, n_genes=N_GENES), seed=0)
    cells.obs_names = [f"cell{i}" for i in range(N_CELLS)]
    cells.var_names = [f"gene{i}" for i in range(N_GENES)]
    number = np.arange(N_CELLS)
    cells.obs["lane"] = np.array(["a", "b"])[number % 2]
    cells.obs["site"] = np.array(["x", "y"])[number // 2 % 2]
    cells.obs["age"] = np.sin(number)
    cells.obs["cell_type"] = np.array(["T", "B"])[number // 3 % 2]
    cells.obs["unit"] = np.array([f"u{i}" for i in range(8)])[number // 5]
    return cells


def cells(change: Callable[[ad.AnnData], Any] | None = None) -> ad.AnnData:
    """40 cells, half of them treated, with two lanes, sites and cell types, and an age."""
    made = _made().copy()
    if change is not None:
        changed = change(made)
        made = changed if isinstance(changed, ad.AnnData) else made
    return made


def column(name: str, values: Any) -> Callable[[ad.AnnData], None]:
    """Return a change that sets a column of obs."""
    return lambda made: made.obs.__setitem__(name, values)


def counts(make: Callable[[np.ndarray], Any]) -> Callable[[ad.AnnData], None]:
    """Return a change that replaces the counts, given dense."""
    return lambda made: setattr(made, "X", make(made.X.toarray()))


def set_up(change: Callable[[ad.AnnData], Any] | None = None, **given: Any) -> ad.AnnData:
    """Return cells that are set up, by default with all covariates."""
    made = cells(change)
    ContrastiveVI.setup_anndata(made, **(SETUP | given))
    return made


@cache
def model() -> ContrastiveVI:
    """Return a model that was trained for an epoch, on half of the cells; the same each time."""
    made = set_up(
        batch_key="lane", categorical_covariate_keys=["site"], continuous_covariate_keys=["age"]
    )
    settings.seed = 0
    fitted = ContrastiveVI(made, **SMALL)
    fitted.train(max_epochs=1, seed=0, train_size=0.5, enable_progress_bar=False)
    return fitted


def fresh(**given: Any) -> ContrastiveVI:
    """Return a model that was not trained."""
    return ContrastiveVI(set_up(), **(SMALL | given))


def trained(**given: Any) -> ContrastiveVI:
    """Train a new model for an epoch, with these arguments of `train`."""
    made = fresh()
    made.train(**({"max_epochs": 1, "enable_progress_bar": False} | given))
    return made
