"""sample() without arguments draws cells like the training cells, before and after saving."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_batch, make_vae
from safetensors.torch import load_file, save_file
from saved_files import edit_config

from pyro_contrastive import ContrastiveVI, Gaussian
from pyro_contrastive.components.seen_cells import N_REMEMBERED, SeenCells, evenly
from pyro_contrastive.testing import SimulationSettings, simulate

# One donor has untreated cells only.
pytestmark = pytest.mark.filterwarnings("ignore:.*occur in one condition only")
N_CELLS = 120
SMALL = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
COVARIATES = {
    "categorical_covariate_keys": ["sex"],
    "continuous_covariate_keys": ["age"],
}


def make_model(keys: dict[str, Any] | None = None, **kwargs: Any) -> ContrastiveVI:
    """Make a model of 90 control cells, of donors a and b, and 30 treated ones, all of donor a."""
    settings = SimulationSettings(n_background=90, n_target=30, n_genes=10, mean_total=100)
    adata = simulate(settings)
    treated = (adata.obs["condition"] != "control").to_numpy()
    adata.obs["donor"] = np.where(treated, "a", np.resize(["a", "b", "b"], N_CELLS))
    adata.obs["sex"] = np.where(adata.obs["donor"] == "a", "f", "m")
    adata.obs["age"] = np.linspace(0, 1, N_CELLS)
    ContrastiveVI.setup_anndata(
        adata, condition_key="condition", background="control", batch_key="donor", **(keys or {})
    )
    return ContrastiveVI(adata, **(SMALL | kwargs))


@pytest.fixture(scope="module")
def fitted() -> ContrastiveVI:
    """Train a model with covariates, a little."""
    model = make_model(COVARIATES)
    model.train(max_epochs=1, seed=0, **QUIET)
    return model


def trained(model: ContrastiveVI, column: str) -> np.ndarray:
    return model.adata.obs[column].to_numpy()[model.train_indices]


def test_without_arguments_cells_are_as_in_training(fitted):
    assert fitted.module.sample().shape == (100, 10)
    drawn = fitted.module.sample(4000, return_latents=True, seed=0)
    share = (trained(fitted, "condition") != "control").mean()
    assert drawn["condition"].float().mean() == pytest.approx(share, abs=5 * 0.5 / 4000**0.5)
    share = (trained(fitted, "donor") == "b").mean()
    assert drawn["batch"].float().mean() == pytest.approx(share, abs=5 * 0.5 / 4000**0.5)
    assert not drawn["batch"][drawn["condition"] == 1].any()  # treated cells were of one donor
    totals = np.asarray(fitted.adata.X.sum(1)).ravel()[fitted.train_indices]
    assert set(drawn["library"].ravel().tolist()) == set(totals.tolist())
    assert not drawn["s"][drawn["condition"] == 0].any()
    assert drawn["s"][drawn["condition"] == 1].all()


def test_covariates_belong_to_the_cell_that_they_are_taken_from(fitted):
    seen = fitted.module.seen_cells
    found = seen.fill_in(dict.fromkeys(("batch", "categorical", "continuous", "library")), 500)
    assert torch.equal(found["categorical"].squeeze(1) == 1, found["batch"] == 1)  # sex by donor
    totals = np.asarray(fitted.adata.X.sum(1)).ravel()
    of_age = dict(zip(np.float32(fitted.adata.obs["age"]).tolist(), totals, strict=True))
    ages = found["continuous"].squeeze(1).tolist()
    assert [of_age[age] for age in ages] == found["library"].squeeze(1).tolist()


def test_library_sizes_are_of_cells_like_those_asked_for(fitted):
    donors, totals = fitted.adata.obs["donor"], np.asarray(fitted.adata.X.sum(1)).ravel()
    treated = fitted.adata.obs["condition"] != "control"
    train = np.isin(np.arange(N_CELLS), fitted.train_indices)
    batch = torch.tensor([0, 1]).repeat(500)
    drawn = fitted.module.sample(1000, condition=0, batch=batch, return_latents=True, seed=0)
    assert torch.equal(drawn["batch"], batch)
    for code, donor in enumerate("ab"):
        of_donor = set(totals[train & ~treated & (donors == donor)].tolist())
        assert set(drawn["library"][batch == code].ravel().tolist()) == of_donor
    # There is no treated cell of the second donor: the sizes are those of its other cells.
    drawn = fitted.module.sample(500, condition=1, batch=1, return_latents=True, seed=0)
    assert set(drawn["library"].ravel().tolist()) == set(totals[train & (donors == "b")].tolist())
    assert drawn["condition"].all()


def test_what_is_given_is_used_and_costs_no_random_numbers(fitted):
    given = {
        "condition": 1,
        "batch": 1,
        "library": 30.0,
        "categorical": torch.ones(5, 1, dtype=torch.long),
        "continuous": torch.zeros(5, 1),
    }
    before = copy.deepcopy(fitted.module)
    before.seen_cells = SeenCells()  # as a model that was not trained here
    one, other = (
        m.sample(5, **given, return_latents=True, seed=1) for m in (fitted.module, before)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (one["library"] == 30).all()


def test_without_training_the_library_size_has_to_be_given():
    vae = make_vae(n_batch=2)
    with pytest.raises(ValueError, match=r"of the training cells are not known.*Give library="):
        vae.sample()
    drawn = vae.sample(library=9.0, return_latents=True)
    assert drawn["condition"].tolist() == [1] * 100
    assert drawn["batch"].tolist() == [0] * 100
    assert make_vae(latent_library=True).sample().shape == (100, 12)
    assert make_vae(likelihood=Gaussian()).sample().shape == (100, 12)


def test_a_latent_library_size_is_drawn_from_its_prior():
    model = make_model(use_observed_lib_size=False)
    model.train(max_epochs=1, seed=0, **QUIET)
    drawn = model.module.sample(3000, batch=1, return_latents=True, seed=0)
    prior = model.module.model.library_prior
    logs = drawn["library"].log()
    error = 5 * (prior.log_variances[1] / 3000).sqrt()
    assert float(logs.mean()) == pytest.approx(float(prior.log_means[1]), abs=float(error))
    assert len(logs.unique()) > 2900  # not one of 100 that were seen
    assert drawn["condition"].float().mean() < 0.1  # as in the second batch


def test_it_is_saved_and_models_without_it_are_loaded(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = ContrastiveVI.load(tmp_path / "model")
    for draw in ({}, {"condition": 0}):
        mine, theirs = (m.module.sample(20, seed=2, **draw) for m in (fitted, loaded))
        assert torch.equal(mine, theirs)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    older = {name: value for name, value in weights.items() if "seen_cells" not in name}
    assert len(older) == len(weights) - 5
    save_file(older, tmp_path / "model" / "model.safetensors")
    edit_config(tmp_path / "model", lambda _: None)  # checksums that fit the file
    loaded = ContrastiveVI.load(tmp_path / "model", fitted.adata)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), fitted.get_latent_representation()
    )
    with pytest.raises(ValueError, match="Give library="):
        loaded.module.sample()
    loaded.train(max_epochs=1, **QUIET)
    assert loaded.module.sample().shape == (100, 10)


@pytest.mark.parametrize("field", ["condition", "library"])
def test_a_file_in_which_it_is_incomplete_is_refused(fitted, tmp_path, field):
    fitted.save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    value = weights.pop(f"seen_cells.{field}")
    save_file(weights | ({"seen_cells.library": value[:3]} if field == "library" else {}), path)
    edit_config(tmp_path / "model", lambda _: None)
    with pytest.raises(ValueError, match=r"seen_cells is incomplete, or of \["):
        ContrastiveVI.load(tmp_path / "model")


def test_weights_are_exchanged_with_and_without_it():
    one, other = make_vae(), make_vae()
    assert not [name for name in one.state_dict() if "seen" in name]
    one.seen_cells.note(make_batch())
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.seen_cells.library, one.seen_cells.library)
    one.load_state_dict(make_vae().state_dict())
    assert not list(one.seen_cells.buffers())
    with pytest.raises(RuntimeError, match=r"Unexpected.*seen_cells\.spin"):
        one.load_state_dict(other.state_dict() | {"seen_cells.spin": torch.zeros(12)})


def test_it_follows_the_model_to_another_precision(fitted):
    double = copy.deepcopy(fitted.module).double()
    assert double.sample(3, return_latents=True)["rate"].dtype == torch.float64


def test_training_is_the_same_whatever_is_remembered(monkeypatch):
    models = [make_model() for _ in range(2)]
    models[1].module.load_state_dict(models[0].module.state_dict())
    models[0].train(max_epochs=2, seed=0, **QUIET)
    monkeypatch.setattr(SeenCells, "note", lambda *_: None)
    models[1].train(max_epochs=2, seed=0, **QUIET)
    one, other = (dict(m.module.named_parameters()) for m in models)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_part_of_many_cells_is_remembered():
    assert evenly(np.arange(7)).tolist() == list(range(7))
    assert evenly(np.arange(0)).tolist() == []
    some = evenly(np.arange(100_000))
    assert len(some) == len(set(some.tolist())) == N_REMEMBERED
    assert (some[0], some[-1]) == (0, 99_999)
    assert (some < 30_000).mean() == pytest.approx(0.3, abs=0.002)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_cells": 0}, "n_cells must be a whole number of at least 1, not 0"),
        ({"n_cells": 5.0}, "n_cells must be a whole number"),
        ({"condition": 7}, "condition must be a whole number of at least 0 and at most 1, not 7"),
        ({"condition": 0.5}, "condition must be a whole number"),
        ({"condition": "treated"}, "condition must be a whole number"),
        ({"condition": -1}, "condition must be a whole number"),
        ({"batch": 5}, "batch must be a whole number of at least 0 and at most 0, not 5"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given, message):
    adata = simulate(SimulationSettings(n_background=20, n_target=20, n_genes=10), seed=0)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    model = ContrastiveVI(adata, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False)
    with pytest.raises(ValueError, match=message):
        model.module.sample(**given)
