"""ContrastiveVI: the class users meet first; its latents and its names."""

from __future__ import annotations

import inspect

import anndata as ad
import numpy as np
import pyro
import pytest
import scipy.sparse as sp
import torch

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.testing import SimulationSettings, simulate

SMALL = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture
def adata() -> ad.AnnData:
    cells = simulate(SimulationSettings(n_background=20, n_target=20, n_genes=8, mean_total=80))
    cells.obs["donor"] = np.resize(["a", "b"], cells.n_obs)
    ContrastiveVI.setup_anndata(
        cells, condition_key="condition", background="control", batch_key="donor"
    )
    return cells


@pytest.fixture
def model(adata: ad.AnnData) -> ContrastiveVI:
    made = ContrastiveVI(adata, **SMALL)
    made.train(max_epochs=2, seed=0, **QUIET)
    return made


KINDS = {"salient": "s", "background": "z"}


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_the_guides_means(model, adata, kind):
    latents = model.get_latent_representation(representation_kind=kind)
    batch = model._data(None).cells(np.arange(adata.n_obs))
    with torch.no_grad():
        mean, _ = model.module.guide.encode(batch)[KINDS[kind]]
    assert latents.dtype == np.float32
    np.testing.assert_array_equal(latents, mean.numpy())


@pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_size_does_not_change_the_means(model, kind, batch_size):
    expected = model.get_latent_representation(representation_kind=kind)
    found = model.get_latent_representation(representation_kind=kind, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_indices_keep_their_order_and_may_repeat(model):
    everything = model.get_latent_representation()
    chosen = [30, 2, 2, -1]
    found = model.get_latent_representation(indices=chosen, batch_size=3)
    np.testing.assert_allclose(found, everything[chosen], atol=1e-6)
    mask = np.arange(40) % 3 == 0
    found = model.get_latent_representation(indices=mask)
    np.testing.assert_allclose(found, everything[mask], atol=1e-6)
    assert model.get_latent_representation(indices=[]).shape == (0, 2)


def test_draws_differ_follow_the_seed_and_have_the_posteriors_moments(model):
    def draw(seed: int | None) -> np.ndarray:
        return model.get_latent_representation(give_mean=False, seed=seed)

    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    assert not np.array_equal(draw(None), draw(None))
    pyro.set_rng_seed(3)
    first = draw(None)
    pyro.set_rng_seed(3)
    np.testing.assert_array_equal(draw(None), first)

    draws = np.stack([draw(seed) for seed in range(100)])  # [draws, cells, latents]
    with torch.no_grad():
        mean, variance = model.module.guide.encode(model._data(None).cells(np.arange(40)))["s"]
    standardised = (draws - mean.numpy()) / variance.sqrt().numpy()
    assert abs(standardised.mean()) < 4 / np.sqrt(standardised.size)
    assert abs(standardised.std() - 1) < 4 / np.sqrt(2 * standardised.size)


def test_draws_within_a_call_are_independent_between_batches(model):
    pair = model.get_latent_representation(indices=[5, 5], give_mean=False, batch_size=1, seed=0)
    assert not np.array_equal(pair[0], pair[1])


def test_latents_leave_model_and_random_state_alone(model):
    model.module.train()
    model.module.guide.z_encoder.eval()
    modes = [m.training for m in model.module.modules()]
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    state = torch.get_rng_state()
    model.get_latent_representation()
    model.get_latent_representation(give_mean=False, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.module.modules()] == modes
    after = model.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_latents_of_a_module_in_training_mode_are_without_dropout(model):
    expected = model.get_latent_representation()
    model.module.train()
    np.testing.assert_array_equal(model.get_latent_representation(), expected)


def test_latents_of_new_data(model, adata):
    new = adata[[3, 25]].copy()
    del new.uns["_pyro_contrastive"]
    expected = model.get_latent_representation(indices=[3, 25])
    np.testing.assert_allclose(model.get_latent_representation(new), expected, atol=1e-6)


def test_the_batch_of_a_cell_is_an_input_of_the_encoder(model, adata):
    other = adata.copy()
    other.obs["donor"] = "b"
    found = model.get_latent_representation(other)
    expected = model.get_latent_representation()
    is_a = np.asarray(adata.obs["donor"] == "a")
    assert not np.allclose(found[is_a], expected[is_a])
    np.testing.assert_array_equal(found[~is_a], expected[~is_a])


@pytest.mark.parametrize("latent_library", [False, True])
def test_empty_cells_have_finite_latents(adata, latent_library):
    counts = adata.X.toarray()
    counts[[0, 30]] = 0
    adata.X = sp.csr_matrix(counts)
    model = ContrastiveVI(adata, use_observed_lib_size=not latent_library, **SMALL)
    model.train(max_epochs=2, **QUIET)
    for kind in KINDS:
        assert np.isfinite(model.get_latent_representation(representation_kind=kind)).all()
    assert np.isfinite(model.history["elbo_train"].to_numpy()).all()


def test_wrong_arguments_are_refused(model):
    with pytest.raises(ValueError, match="must be 'salient' or 'background', not 'target'"):
        model.get_latent_representation(representation_kind="target")
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        model.get_latent_representation(batch_size=0)
    with pytest.raises(ValueError, match="mask of shape"):
        model.get_latent_representation(indices=np.ones(3, dtype=bool))


def test_data_changed_behind_the_models_back_are_noticed(model, adata):
    adata.X = sp.csr_matrix(np.log1p(adata.X.toarray()))
    with pytest.raises(ValueError, match="must hold raw counts"):
        model.get_latent_representation()


def test_a_model_has_the_shape_asked_for(adata):
    model = ContrastiveVI(
        adata, n_hidden=np.int64(5), n_background_latent=4, n_salient_latent=6, n_layers=2
    )
    assert model.get_latent_representation(representation_kind="background").shape == (40, 4)
    assert model.get_latent_representation(representation_kind="salient").shape == (40, 6)
    blocks = model.module.guide.z_encoder.body.blocks
    assert [b.linear.out_features for b in blocks] == [5, 5]
    assert model.genes == adata.var_names.tolist()
    assert not model.is_trained
    assert "untrained" in repr(model)
    assert "8 genes, 2 batches" in repr(model)
    assert "control, treated" in repr(model)


def test_repr_says_how_long_it_trained(model):
    assert "trained for 2 epochs" in repr(model)


def test_arguments_are_those_of_scvi_tools():
    """Its callers' keyword arguments work here, with the same defaults where they have one."""
    scvi_names = {
        "__init__": "adata n_hidden n_background_latent n_salient_latent n_layers dropout_rate "
        "use_observed_lib_size wasserstein_penalty",
        "setup_anndata": "adata layer batch_key labels_key size_factor_key "
        "categorical_covariate_keys continuous_covariate_keys",
        "train": "background_indices target_indices max_epochs accelerator devices train_size "
        "validation_size shuffle_set_split batch_size early_stopping plan_kwargs",
        "get_latent_representation": "adata indices give_mean batch_size representation_kind",
        "save": "dir_path overwrite save_anndata",
        "load": "dir_path adata",
    }
    for method, names in scvi_names.items():
        ours = list(inspect.signature(getattr(ContrastiveVI, method)).parameters)
        ours = [name for name in ours if name != "self"]
        if method == "save":
            assert set(names.split()) <= set(ours)
        else:
            assert [n for n in ours if n in names.split()] == names.split()


def test_defaults_are_those_of_scvi_tools(adata):
    scvi_model = pytest.importorskip("scvi.external.contrastivevi").ContrastiveVI
    for method in ("__init__", "train", "get_latent_representation", "setup_anndata"):
        theirs = inspect.signature(getattr(scvi_model, method)).parameters
        ours = inspect.signature(getattr(ContrastiveVI, method)).parameters
        for name in set(theirs) & set(ours) - {"self", "adata"}:
            if theirs[name].default is not inspect.Parameter.empty:
                # None: as theirs with their schedule, and with the fast one early stopping.
                usual = None if name == "early_stopping" else theirs[name].default
                assert ours[name].default == usual, (method, name)


@pytest.mark.parametrize(("kind", "other"), [("salient", "z_encoder"), ("background", "s_encoder")])
def test_a_latent_takes_only_its_own_encoder(model, monkeypatch, kind, other) -> None:
    expected = model.get_latent_representation(representation_kind=kind)

    def fail(*_) -> None:
        raise AssertionError(other)

    for name in ("forward", "of_product"):
        monkeypatch.setattr(getattr(model.module.guide, other), name, fail)
    found = model.get_latent_representation(representation_kind=kind)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(AssertionError, match=other):
        model.module.guide(model._data(None).cells(np.arange(4)))
