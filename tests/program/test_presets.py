"""Published members of the family."""

from __future__ import annotations

import numpy as np
import pyro
import pytest

from pyro_contrastive import ContrastiveVI, presets
from pyro_contrastive.presets import PRESETS
from pyro_contrastive.testing import SimulationSettings, simulate


@pytest.fixture(scope="module")
def adata():
    cells = simulate(SimulationSettings(n_background=60, n_target=60, n_genes=20), seed=0)
    drug = np.where(np.arange(120) % 2, "a", "b")
    cells.obs["drug"] = np.where(cells.obs["condition"] == "control", "none", drug)
    ContrastiveVI.setup_anndata(cells, condition_key="drug", background="none")
    return cells


@pytest.fixture(scope="module", params=list(PRESETS))
def fitted(request, adata) -> ContrastiveVI:
    pyro.set_rng_seed(0)
    model = ContrastiveVI.from_preset(adata, request.param, 3, 2, n_hidden=8)
    model.train(max_epochs=2, enable_progress_bar=False, seed=0)
    model.preset = request.param
    return model


@pytest.mark.slow
def test_every_preset_has_latents_and_likelihoods(fitted) -> None:
    blocks = 2 if fitted.preset == "multiGroupVI" else 1
    z, s = (
        fitted.get_latent_representation(representation_kind=k) for k in ("background", "salient")
    )
    assert (z.shape, s.shape) == ((120, 3), (120, 2 * blocks))
    assert fitted.get_latent_library_size().shape == (120, 1)
    assert np.isfinite(fitted.get_elbo(seed=0))
    assert np.isfinite(fitted.get_reconstruction_error(seed=0)["reconstruction_loss"])
    marginal = fitted.get_marginal_ll(indices=[0, 70], n_mc_samples=20, return_mean=False, seed=0)
    assert np.isfinite(marginal).all()
    assert len(fitted.score_latents(labels_key="drug")) >= 4


def test_every_preset_has_expression_and_effects(fitted, adata) -> None:
    expression = fitted.get_normalized_expression(return_numpy=True, seed=0)
    for table in expression.values():
        assert np.isfinite(table).all()
        if fitted.preset != "CPLVM":
            np.testing.assert_allclose(table.sum(1), 1.0, rtol=1e-4)
    treated = np.flatnonzero(adata.obs["drug"] == "a")[:5]
    untreated = fitted.get_counterfactual_expression("none", indices=treated, seed=0)
    assert untreated.shape == (5, 20)
    assert (untreated.to_numpy() > 0).all()
    effect = fitted.get_treatment_effect(indices=[0, *treated], n_samples=39, seed=0)
    assert not effect["mean"].iloc[0].any()  # a background cell
    assert effect["mean"].iloc[1:].to_numpy().any(axis=1).all()
    assert (effect["lower"] <= effect["upper"]).all(axis=None)
    genes = fitted.differential_expression(groupby="drug", group1="a", group2="none", seed=0)
    assert len(genes) == 20
    assert np.isfinite(genes["lfc_mean"]).all()


def test_every_preset_draws_cells(fitted) -> None:
    drawn = fitted.module.sample(6, condition=1, library=500.0, seed=0)
    assert drawn.shape == (6, 20)
    assert (drawn >= 0).all()
    assert (drawn == drawn.round()).all()


def test_every_preset_is_saved_and_comes_back(fitted, adata, tmp_path) -> None:
    fitted.save(tmp_path / "model")
    again = ContrastiveVI.load(tmp_path / "model", adata)
    for kind in ("background", "salient"):
        np.testing.assert_array_equal(
            again.get_latent_representation(representation_kind=kind),
            fitted.get_latent_representation(representation_kind=kind),
        )
    assert [p.name for p in again.module.penalties] == [p.name for p in fitted.module.penalties]


@pytest.mark.parametrize(
    ("name", "penalties"),
    [
        ("contrastiveVI", []),
        ("MM-cVAE", ["mmd_z", "mmd_s"]),
        ("contrastiveVI+", ["wasserstein", "mmd_z"]),
        ("multiGroupVI", ["wasserstein"]),
        ("separated", ["wasserstein", "mmd_z", "hsic", "latesalient"]),
        ("SepVAE", ["narrowsalient", "salientclassifier", "totalcorrelation"]),
        ("cvae", ["totalcorrelation"]),
    ],
)
def test_the_history_has_the_terms_of_a_preset(name, penalties, adata) -> None:
    model = ContrastiveVI.from_preset(adata, name, 3, 2, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False, seed=0)
    assert [p.name for p in model.module.penalties] == penalties
    assert {f"{penalty}_train" for penalty in penalties} <= set(model.history)


@pytest.mark.parametrize(("given", "encoder", "decoder"), [({}, 2, 1), ({"n_layers": 3}, 3, 1)])
def test_separated_has_encoders_of_two_hidden_layers(given, encoder, decoder, adata) -> None:
    vae = ContrastiveVI.from_preset(adata, "separated", **given).module
    depths = {len(part.body.blocks) for part in (vae.guide.z_encoder, vae.guide.s_encoder)}
    assert depths == {encoder}
    assert len(vae.model.decoder.blocks) == decoder


def test_penalties_of_separated_have_their_weight_from_the_first_step_on(adata) -> None:
    model = ContrastiveVI.from_preset(adata, "separated")
    batch = model._data(None).cells(np.arange(len(adata)))
    vae, found = model.module.eval(), {}
    vae.objective.kl_weight = 0.0
    for weight in (1.0, 0.0):
        for penalty in vae.penalties:
            penalty.weight *= weight
        pyro.set_rng_seed(0)
        found[weight] = vae.objective.loss(vae.model, vae.guide, batch)
    assert found[1.0] > found[0.0] + 0.1


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
