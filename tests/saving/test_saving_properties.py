"""Any model of the library's parts comes back from its folder as it was."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import anndata as ad
import every_guide
import every_likelihood
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_contrastive import HSIC, MMD, ContrastiveVI, LateSalient, Wasserstein
from pyro_contrastive.testing import SimulationSettings, simulate

COUNTS = ["zinb", "nb", "nb by batch", "zinb by cell", "poisson", "zip"]
PENALTIES = {
    "Wasserstein": Wasserstein,
    "MMD": lambda weight: MMD(weight, "z"),
    "HSIC": HSIC,
    "LateSalient": lambda weight: LateSalient(1 + int(weight)),
}
CHOICES = {
    "likelihood": st.sampled_from(COUNTS),
    "guide": st.sampled_from([*every_guide.OURS]),
    "penalties": st.lists(st.sampled_from([*PENALTIES]), unique=True),
    "weight": st.floats(0.01, 100),
    "sizes": st.tuples(*[st.integers(1, 4)] * 3),
    "n_layers": st.integers(1, 2),
    "is_latent": st.booleans(),
    "seed": st.integers(0, 2**31),
}


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    made = simulate(SimulationSettings(n_background=10, n_target=11, n_genes=5, mean_total=60))
    made.obs["donor"] = np.resize(["a", "b"], made.n_obs)
    keys = {"condition_key": "condition", "background": "control", "batch_key": "donor"}
    ContrastiveVI.setup_anndata(made, **keys)
    return made


def made_of(adata: ad.AnnData, chosen: dict[str, Any]) -> ContrastiveVI:
    n_background_latent, n_salient_latent, n_hidden = chosen["sizes"]
    torch.manual_seed(chosen["seed"])
    model = ContrastiveVI(
        adata,
        n_hidden=n_hidden,
        n_background_latent=n_background_latent,
        n_salient_latent=n_salient_latent,
        n_layers=chosen["n_layers"],
        use_observed_lib_size=not chosen["is_latent"],
        likelihood=every_likelihood.MADE[chosen["likelihood"]](),
        guide=every_guide.OURS[chosen["guide"]](),
        penalties=[PENALTIES[name](chosen["weight"]) for name in chosen["penalties"]],
    )
    # Weights as no initialisation gives them, so that none comes back by chance.
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


@settings(max_examples=6, deadline=None)
@given(st.fixed_dictionaries(CHOICES))
def test_a_model_comes_back_as_it_was(adata: ad.AnnData, chosen: dict[str, Any]) -> None:
    model = made_of(adata, chosen)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        model.save(path)
        torch.manual_seed(chosen["seed"] + 1)  # loading does not depend on the global state
        loaded = ContrastiveVI.load(path, adata)
        again = Path(folder) / "again"
        loaded.save(again)
        assert (path / "config.json").read_bytes() == (again / "config.json").read_bytes()
    mine, theirs = model.module.state_dict(), loaded.module.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    batch = model._data(None).cells(np.arange(21))
    losses = []
    for vae in (model.module.eval(), loaded.module.eval()):
        torch.manual_seed(0)
        losses.append(vae.objective.loss(vae.model, vae.guide, batch))
    assert losses[0] == losses[1]
    assert str(loaded) == str(model)
