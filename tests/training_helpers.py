"""Small models and how to train them, for the tests of training."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import torch
from torch import Tensor

from pyro_contrastive import (
    ContrastiveVI,
)
from pyro_contrastive.testing import SimulationSettings, simulate
from pyro_contrastive.training.history import FitResult
from pyro_contrastive.training.splits import (
    split_populations,
)

SMALL = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}


def make_adata(n_background: int = 20, n_target: int = 30) -> ad.AnnData:
    adata = simulate(
        SimulationSettings(n_background=n_background, n_target=n_target, n_genes=10, mean_total=80)
    )
    adata.obs["chip"] = np.resize(["a", "b"], adata.n_obs)
    adata.obs["score"] = np.linspace(-1, 1, adata.n_obs)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    return adata


def make_model(adata: ad.AnnData | None = None, **kwargs: Any) -> ContrastiveVI:
    return ContrastiveVI(make_adata() if adata is None else adata, **(SMALL | kwargs))


def train(model: ContrastiveVI, max_epochs: int = 2, **kwargs: Any) -> FitResult:
    quiet = {"max_epochs": max_epochs, "enable_progress_bar": False, "accelerator": "cpu"}
    return model.train(**(quiet | kwargs))


def weights(model: ContrastiveVI) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def column(model: ContrastiveVI, name: str) -> np.ndarray:
    return model.history[name][name].to_numpy()


def split_of_seed(model: ContrastiveVI, seed: int, **kwargs: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rng = np.random.default_rng(int(torch.randint(2**62, ()).item()))
    condition = model._data(None).condition
    return split_populations(
        np.flatnonzero(condition == 0), np.flatnonzero(condition), rng=rng, **kwargs
    )
