"""Published members of the family."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch

from pyro_contrastive import ContrastiveVI, presets
from pyro_contrastive.family import PRESETS
from pyro_contrastive.testing import SimulationSettings, simulate


@pytest.fixture(scope="module")
def adata():
    cells = simulate(SimulationSettings(n_background=60, n_target=60, n_genes=20), seed=0)
    drug = np.where(np.arange(120) % 2, "a", "b")
    cells.obs["drug"] = np.where(cells.obs["condition"] == "control", "none", drug)
    ContrastiveVI.setup_anndata(cells, condition_key="drug", background="none")
    return cells


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_trains_and_comes_back(name, adata, tmp_path) -> None:
    pyro.set_rng_seed(0)
    model = ContrastiveVI.from_preset(adata, name, 3, 2, n_hidden=8)
    model.train(max_epochs=2, enable_progress_bar=False, seed=0)
    blocks = 2 if name == "multiGroupVI" else 1
    salient = model.get_latent_representation(representation_kind="salient")
    assert salient.shape == (120, 2 * blocks)
    assert model.get_latent_representation(representation_kind="background").shape == (120, 3)
    assert np.isfinite(model.get_elbo())
    expression = model.get_normalized_expression(return_numpy=True)
    assert all(np.isfinite(table).all() for table in expression.values())
    model.save(tmp_path / "model")
    again = ContrastiveVI.load(tmp_path / "model", adata)
    assert torch.equal(
        torch.as_tensor(again.get_latent_representation(representation_kind="salient")),
        torch.as_tensor(salient),
    )


@pytest.mark.parametrize(
    ("name", "penalties"),
    [
        ("contrastiveVI", []),
        ("MM-cVAE", ["mmd_z", "mmd_s"]),
        ("SepVAE", ["narrowsalient", "salientclassifier", "totalcorrelation"]),
        ("cvae", ["totalcorrelation"]),
        ("separated", ["wasserstein", "mmd_z", "hsic"]),
    ],
)
def test_the_history_has_the_terms_of_a_preset(name, penalties, adata) -> None:
    model = ContrastiveVI.from_preset(adata, name, 3, 2, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False, seed=0)
    assert [p.name for p in model.module.penalties] == penalties
    assert {f"{penalty}_train" for penalty in penalties} <= set(model.history)


def test_a_preset_may_be_changed(adata) -> None:
    model = ContrastiveVI.from_preset(adata, "mm-cvae", penalties=[], wasserstein_penalty=2.0)
    assert [p.name for p in model.module.penalties] == ["wasserstein"]


def test_the_table_lists_them_all() -> None:
    table = presets()
    assert list(table.index) == list(PRESETS)
    assert table.notna().all().all()
    assert (table.map(len) > 5).all().all()


def test_an_unknown_preset_lists_the_known_ones(adata) -> None:
    with pytest.raises(ValueError, match=r"There is no preset 'contrastVI'; .*SepVAE"):
        ContrastiveVI.from_preset(adata, "contrastVI")
