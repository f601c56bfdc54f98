"""A small ContrastiveVI, and the cells it is made for."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.testing import SimulationSettings, simulate

GENES = 15
SMALL: dict[str, Any] = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}


def small_adata() -> ad.AnnData:
    """12 control cells and 14 treated ones, the latter by two drugs, in two lanes."""
    made = simulate(SimulationSettings(n_background=12, n_target=14, n_genes=GENES), seed=0)
    made.obs_names = [f"cell{i}" for i in range(26)]
    made.var_names = [f"gene{i}" for i in range(GENES)]
    made.obs["lane"] = pd.Categorical(np.array(["a", "b"])[np.arange(26) % 2])
    made.obs["three"] = np.repeat(["control", "drug1", "drug2"], [12, 7, 7])
    return made


def make(
    adata: ad.AnnData, condition_key: str | None = "condition", **kwargs: Any
) -> ContrastiveVI:
    """Set up the cells, by batch and condition, and make a model."""
    ContrastiveVI.setup_anndata(
        adata,
        batch_key="lane",
        condition_key=condition_key,
        background=None if condition_key is None else "control",
    )
    return ContrastiveVI(adata, **(SMALL | kwargs))
