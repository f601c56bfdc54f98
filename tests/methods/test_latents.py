"""Library sizes and scores of latents by the model's methods."""

from __future__ import annotations

import numpy as np
import pytest
from small_model import GENES, SMALL, make

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.testing import SimulationSettings, simulate


def test_library_sizes(adata) -> None:
    totals = np.asarray(adata.X.sum(1))
    assert make(adata).get_latent_library_size() == pytest.approx(totals)
    model = make(adata, use_observed_lib_size=False)
    moments = model.module.guide.encode(model.setup.extract(adata).cells(np.arange(26)))
    mean, variance = (m.detach().numpy() for m in moments["library"])
    expected = np.exp(mean + variance / 2)  # the mean of a log-normal; not exp(mean + variance^2/2)
    assert model.get_latent_library_size() == pytest.approx(expected, rel=1e-5)
    repeated = np.tile(np.arange(26), 2000)
    draws = model.get_latent_library_size(indices=repeated, give_mean=False, seed=0)
    draws = draws.reshape(2000, 26).T
    error = (np.log(draws).mean(1) - mean[:, 0]) / np.sqrt(variance[:, 0] / 2000)
    assert np.abs(error).max() < 5


def test_latents_are_scored_by_condition_and_registered_labels() -> None:
    adata = simulate(SimulationSettings(n_background=80, n_target=80, n_genes=GENES), seed=0)
    adata.obs["kind"] = np.where(adata.obsm["z"][:, 0] > 0, "up", "down")
    ContrastiveVI.setup_anndata(
        adata, labels_key="kind", condition_key="condition", background="control"
    )
    model = ContrastiveVI(adata, **SMALL)
    table = model.score_latents()
    assert set(table["of"]) == {"condition", "labels"}
    assert set(table["latent"]) == {"background", "salient"}
    ContrastiveVI.setup_anndata(adata)
    with pytest.raises(ValueError, match="knows no conditions"):
        ContrastiveVI(adata, **SMALL).score_latents()
