"""Saving and loading: the same model comes back, a failure loses nothing, errors say what to do."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from saved_files import edit_config
from torch import Tensor

import pyro_contrastive
from pyro_contrastive import (
    MMD,
    CellBatch,
    ContrastiveELBO,
    ContrastiveVI,
    InvalidFileError,
    NegativeBinomial,
    Penalty,
    Prior,
)
from pyro_contrastive._tools import atomic
from pyro_contrastive.saving import folder as saved_folder
from pyro_contrastive.testing import SimulationSettings, simulate

SMALL = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def make_adata() -> ad.AnnData:
    adata = simulate(SimulationSettings(n_background=20, n_target=20, n_genes=8, mean_total=80))
    adata.obs["donor"] = np.resize(["a", "b"], adata.n_obs)
    keys = {"condition_key": "condition", "background": "control", "batch_key": "donor"}
    ContrastiveVI.setup_anndata(adata, **keys)
    return adata


def make_model(*, trained: bool = True, **kwargs: Any) -> ContrastiveVI:
    model = ContrastiveVI(make_adata(), **(SMALL | kwargs))
    if trained:
        model.train(max_epochs=2, seed=0, **QUIET)
    return model


def assert_same_model(loaded: ContrastiveVI, model: ContrastiveVI) -> None:
    """Bitwise: weights, both latents, and what the generative model says of the counts."""
    mine, theirs = model.module.state_dict(), loaded.module.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for kind in ("salient", "background"):
        latents = [
            m.get_latent_representation(model.adata, representation_kind=kind)
            for m in (model, loaded)
        ]
        np.testing.assert_array_equal(*latents)
    batch = model._data(None).cells(np.arange(40))
    losses = []
    for vae in (model.module, loaded.module):
        torch.manual_seed(0)
        losses.append(vae.objective.loss(vae.model, vae.guide, batch))
    assert losses[0] == losses[1]


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# Components of the user's own, to be saved


class Tempered(NegativeBinomial):
    """Its argument is kept as an attribute."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, heads: Mapping[str, Tensor], library: Tensor) -> Any:
        return super().forward(heads, library * self.temperature)


class Forgetful(Tempered):
    """Does not keep its argument: made again, it would be another likelihood."""

    def __init__(self, percent: float = 100.0) -> None:
        super().__init__(percent / 100)


class Learned(Prior):
    """Keeps its argument as a parameter, which is not JSON."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(mean)

    def forward(self, batch: CellBatch) -> dist.Distribution:
        return dist.Normal(self.mean, 1.0).to_event(1)


class Plain(Penalty):
    """No constructor of its own."""

    def forward(self, model_trace: Any, guide_trace: Any, batch: CellBatch) -> Tensor:
        return guide_trace.nodes["z"]["fn"].mean.square().mean()


# The same model comes back


@pytest.mark.parametrize(
    "make",
    [
        dict,
        lambda: {"use_observed_lib_size": False},
        lambda: {"likelihood": NegativeBinomial(), "n_layers": 2, "dropout_rate": 0.0},
        lambda: {"elbo": TraceMeanField_ELBO, "elbo_kwargs": {"weighting": "proportional"}},
        lambda: {"salient_prior": dist.Laplace(0.0, 1.0), "background_prior": dist.Normal(1.0, 3)},
        lambda: {"background_prior": dist.StudentT(torch.tensor([3.0, 4.0, 5.0]), 0.1, 2.0)},
        lambda: {"wasserstein_penalty": 2.5, "penalties": [Plain(1.5, annealed=False)]},
        lambda: {
            "n_hidden": np.int64(16),
            "dropout_rate": np.float32(0.25),
            "use_observed_lib_size": np.bool_(True),
            "wasserstein_penalty": np.float32(2.0),
            "penalties": [Plain(np.float32(0.5))],
        },
    ],
)
def test_the_same_model_comes_back(tmp_path, make):
    model = make_model(**make())
    model.save(tmp_path / "model")
    own = {k: v for k, v in make().items() if k == "penalties"}
    loaded = ContrastiveVI.load(tmp_path / "model", model.adata, **own)
    assert_same_model(loaded, model)
    assert loaded.settings == model.settings
    assert loaded.setup == model.setup
    assert loaded.is_trained
    assert loaded.history.keys() == model.history.keys()
    for name, frame in model.history.items():
        assert frame.equals(loaded.history[name])
    assert [(type(p), p.weight, p.annealed) for p in loaded.module.penalties] == [
        (type(p), p.weight, p.annealed) for p in model.module.penalties
    ]
    assert type(loaded.module.objective) is type(model.module.objective)
    assert not loaded.module.training
    assert repr(loaded) == repr(model)


def test_which_cells_were_held_out_is_known_after_loading(tmp_path):
    model = make_model()
    adata = model.adata
    model.save(tmp_path / "model", save_anndata=True)
    for given in (None, adata.copy()):
        loaded = ContrastiveVI.load(tmp_path / "model", given)
        for part in ("train_indices", "validation_indices", "test_indices"):
            assert np.array_equal(getattr(loaded, part), getattr(model, part)), part
    assert len(loaded.validation_indices)
    turned = ContrastiveVI.load(tmp_path / "model", adata[::-1].copy())
    assert turned.train_indices is None  # they would be other cells
    model.save(tmp_path / "without")
    again = ContrastiveVI.load(tmp_path / "without")
    again.save(tmp_path / "again")
    again = ContrastiveVI.load(tmp_path / "again", adata)
    assert np.array_equal(again.train_indices, model.train_indices)
    untrained = make_model(trained=False)
    untrained.save(tmp_path / "untrained")
    assert ContrastiveVI.load(tmp_path / "untrained").train_indices is None


def test_an_untrained_model_comes_back(tmp_path):
    model = make_model(trained=False)
    model.save(tmp_path / "model")
    loaded = ContrastiveVI.load(tmp_path / "model", model.adata)
    assert not loaded.is_trained
    assert not loaded.history
    assert_same_model(loaded, model)


def test_a_prior_shared_by_both_latents_can_be_saved(tmp_path):
    prior = pyro_contrastive.StandardNormal(2)
    model = make_model(n_background_latent=2, background_prior=prior, salient_prior=prior)
    model.save(tmp_path / "model")
    assert_same_model(ContrastiveVI.load(tmp_path / "model"), model)


def test_a_loaded_model_trains_on(tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    loaded = ContrastiveVI.load(tmp_path / "model", model.adata)
    for m in (model, loaded):
        m.train(max_epochs=2, seed=1, **QUIET)
    assert_same_model(loaded, model)
    assert loaded.history["elbo_train"].index.tolist() == [0, 1, 2, 3]
    assert loaded.history["elbo_train"].equals(model.history["elbo_train"])


def test_loading_leaves_the_random_state_alone(tmp_path):
    make_model().save(tmp_path / "model")
    before = torch.get_rng_state()
    ContrastiveVI.load(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)


# With and without data


def test_saved_data_come_back(tmp_path):
    model = make_model()
    model.save(tmp_path / "model", save_anndata=True)
    loaded = ContrastiveVI.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.adata.X.toarray(), model.adata.X.toarray())
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    loaded.train(max_epochs=1, **QUIET)


def test_data_are_not_saved_unless_asked_for(tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    assert sorted(files(tmp_path / "model")) == ["config.json", "model.safetensors"]
    loaded = ContrastiveVI.load(tmp_path / "model")
    with pytest.raises(ValueError, match="loaded without data: give adata="):
        loaded.get_latent_representation()
    np.testing.assert_array_equal(
        loaded.get_latent_representation(model.adata), model.get_latent_representation()
    )


def test_data_need_not_be_registered_again(tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    del model.adata.uns["_pyro_contrastive"]
    ContrastiveVI.load(tmp_path / "model", model.adata).train(max_epochs=1, **QUIET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:, :6], r"lacks 2 of the 8 genes that were set up, e.g. \['6', '7'\]"),
        (lambda a: ad.AnnData(a.X, a.obs.drop(columns="donor"), a.var), "'donor' is not a column"),
        (lambda a: ad.AnnData(a.X, a.obs.assign(donor="z"), a.var), r"\['z'\]. Known are"),
        (lambda a: ad.AnnData(a.X.multiply(0.5).tocsr(), a.obs, a.var), "raw counts"),
    ],
)
def test_data_that_do_not_fit_are_refused_when_loading(tmp_path, change, message):
    model = make_model(trained=False)
    model.save(tmp_path / "model")
    with pytest.raises((ValueError, KeyError), match=message):
        ContrastiveVI.load(tmp_path / "model", change(model.adata))


# What is on disk


def test_the_configuration_can_be_read_by_a_human(tmp_path):
    make_model().save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["setup"]["genes"] == [str(i) for i in range(8)]
    assert config["setup"]["categories"]["condition"] == ["control", "treated"]
    assert config["versions"]["pyro-contrastive"] == pyro_contrastive.__version__
    assert config["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"pyro-ppl", "anndata", "numpy"} <= set(config["versions"])
    assert config["settings"]["n_hidden"] == 8
    assert config["components"]["likelihood"]["class"].endswith(":ZeroInflatedNegativeBinomial")


def test_nothing_is_pickled(tmp_path):
    make_model().save(tmp_path / "model", save_anndata=True)
    contents = files(tmp_path / "model")
    assert set(contents) == {"config.json", "model.safetensors", "adata.h5ad"}
    assert all(not data.startswith((b"\x80", b"PK")) for data in contents.values())


# Overwriting, and failing half-way


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    before = files(tmp_path / "model")
    with pytest.raises(FileExistsError, match=r"there already; save\(..., overwrite=True\)"):
        make_model(n_hidden=4).save(tmp_path / "model")
    assert files(tmp_path / "model") == before


def test_overwriting_replaces_everything(tmp_path):
    make_model().save(tmp_path / "deep" / "er" / "model", save_anndata=True)
    model = make_model(n_hidden=4)
    model.save(tmp_path / "deep" / "er" / "model", overwrite=True)
    assert_same_model(ContrastiveVI.load(tmp_path / "deep" / "er" / "model"), model)
    assert len(files(tmp_path)) == 2  # the data saved before are gone too, and nothing is left over


def test_overwriting_never_deletes_other_files(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "figure.png").write_text("a week's work")
    with pytest.raises(FileExistsError, match=r"more than a saved model \(figure.png\)"):
        make_model().save(tmp_path / "results", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="more than a saved model"):
        make_model().save(tmp_path / "file", overwrite=True)
    assert files(tmp_path) == {"results/figure.png": b"a week's work", "file": b"x"}


class DiskFullError(OSError):
    pass


def fail(*args: Any, **kwargs: Any) -> None:
    raise DiskFullError


@pytest.mark.parametrize("step", ["weights", "adata", "last move"])
@pytest.mark.parametrize("there_before", [True, False])
def test_a_failure_while_writing_loses_nothing(tmp_path, monkeypatch, step, there_before):
    if there_before:
        make_model().save(tmp_path / "model")
    before = files(tmp_path)
    if step == "weights":
        monkeypatch.setattr(saved_folder, "save", fail)
    elif step == "adata":
        monkeypatch.setattr(saved_folder, "write_h5ad", fail)
    else:
        monkeypatch.setattr(atomic, "exchange", fail)
        monkeypatch.setattr(atomic.os, "rename", fail)
    with pytest.raises(DiskFullError):
        make_model(n_hidden=4).save(tmp_path / "model", overwrite=True, save_anndata=True)
    assert files(tmp_path) == before
    assert [f.name for f in tmp_path.iterdir()] == (["model"] if there_before else [])


# Damaged folders


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    make_model(trained=False).save(tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"not a saved model: it has no {name}"):
        ContrastiveVI.load(tmp_path / "model")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a saved model"):
        ContrastiveVI.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_truncated_file_is_named(tmp_path, name):
    make_model(trained=False).save(tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        ContrastiveVI.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "has format 99 .*this version reads formats up to 2"),
        ({"setup": {"no": "such"}}, "config.json is damaged or incomplete"),
        ({"history": 3}, "config.json is damaged or incomplete"),
    ],
)
def test_a_changed_configuration(tmp_path, changes, message):
    make_model(trained=False).save(tmp_path / "model")
    edit_config(tmp_path / "model", lambda config: config.update(changes))
    with pytest.raises(ValueError, match=message):
        ContrastiveVI.load(tmp_path / "model")


def test_an_incomplete_configuration(tmp_path):
    make_model(trained=False).save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    for key in set(config) - {"refined"}:  # which earlier versions did not write
        path.write_text(json.dumps({k: v for k, v in config.items() if k != key}))
        with pytest.raises(ValueError, match=f"config.json is damaged.*{key}"):
            ContrastiveVI.load(tmp_path / "model")


def test_weights_of_another_model(tmp_path):
    make_model(trained=False).save(tmp_path / "model")
    make_model(trained=False, n_hidden=4).save(tmp_path / "other")
    os.replace(tmp_path / "other" / "model.safetensors", tmp_path / "model" / "model.safetensors")
    with pytest.raises(InvalidFileError, match=r"model\.safetensors .* belongs to another model"):
        ContrastiveVI.load(tmp_path / "model")
    edit_config(tmp_path / "model", lambda config: None)
    with pytest.raises(InvalidFileError, match="weights do not fit the model"):
        ContrastiveVI.load(tmp_path / "model")


# Components of the user's own


def test_own_components_are_asked_for_by_the_call_that_gives_them(tmp_path, caplog):
    model = make_model(likelihood=Tempered(0.5), penalties=[MMD(3.0), Plain(2.0, annealed=False)])
    with caplog.at_level("INFO", logger="pyro_contrastive"):
        model.save(tmp_path / "model")
    call = (
        "ContrastiveVI.load(..., likelihood=Tempered(temperature=0.5), "
        "penalties=[MMD(weight=3.0, site='z', annealed=True), Plain(weight=2.0, annealed=False)])."
    )
    (said,) = [r.getMessage() for r in caplog.records if "of your own" in r.getMessage()]
    assert call in said
    with pytest.raises(ValueError, match=re.escape(call)):
        ContrastiveVI.load(tmp_path / "model")
    loaded = eval(call.rstrip(".").replace("...", "tmp_path / 'model'"))  # the call itself
    assert_same_model(loaded, model)
    assert loaded.module.model.likelihood.temperature == 0.5
    assert [p.weight for p in loaded.module.penalties] == [3.0, 2.0]


def test_of_the_librarys_own_saving_has_nothing_to_say(tmp_path, caplog):
    with caplog.at_level("INFO", logger="pyro_contrastive"):
        make_model(trained=False, penalties=[MMD()]).save(tmp_path / "model")
    assert not caplog.records


def test_a_component_that_the_model_does_not_have_is_refused(tmp_path):
    make_model(trained=False).save(tmp_path / "model")
    with pytest.raises(ValueError, match="has no library_prior that could be replaced"):
        ContrastiveVI.load(tmp_path / "model", library_prior=dist.LogNormal(4.0, 1.0))


def test_the_librarys_own_are_named_as_users_know_them(tmp_path):
    make_model(trained=False, penalties=[MMD()]).save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    named = set(re.findall(r"'class': '([^']*)'", str(config)))
    assert named == {
        "pyro_contrastive:ZeroInflatedNegativeBinomial",
        "pyro_contrastive:ContrastiveGuide",
        "pyro_contrastive:StandardNormal",
        "pyro_contrastive:MMD",
    }


def test_components_that_cannot_be_imported_are_passed_in_again(tmp_path):
    class MyLikelihood(NegativeBinomial):
        pass

    class MyPenalty(Plain):
        pass

    model = make_model(likelihood=MyLikelihood(), penalties=[MyPenalty()])
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"MyLikelihood .*load\(..., likelihood=MyLikelihood\("):
        ContrastiveVI.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"load\(..., penalties=\[MyPenalty\(weight=1.0, "):
        ContrastiveVI.load(tmp_path / "model", likelihood=MyLikelihood())
    loaded = ContrastiveVI.load(
        tmp_path / "model", likelihood=MyLikelihood(), penalties=[MyPenalty()]
    )
    assert_same_model(loaded, model)


def test_a_module_that_is_not_there_is_named(tmp_path):
    make_model(trained=False).save(tmp_path / "model")
    name = "my_notebook_code:ZeroInflatedNegativeBinomial"
    edit_config(
        tmp_path / "model",
        lambda config: config["components"]["likelihood"].update({"class": name}),
    )
    with pytest.raises(ValueError, match=r"from module 'my_notebook_code'\) is not a part of"):
        ContrastiveVI.load(tmp_path / "model")


def test_an_argument_that_is_not_kept_is_asked_for_not_guessed(tmp_path):
    model = make_model(likelihood=Forgetful(50.0))
    with pytest.warns(UserWarning, match=r"likelihood: load\(\) will not be able to make"):
        model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="'percent' is not kept as an attribute"):
        ContrastiveVI.load(tmp_path / "model")
    assert_same_model(ContrastiveVI.load(tmp_path / "model", likelihood=Forgetful(50.0)), model)


def test_an_argument_that_is_not_json_does_not_prevent_saving(tmp_path):
    model = make_model(salient_prior=Learned(torch.tensor([1.0, 2.0])))
    assert not torch.equal(model.module.model.salient_prior.mean, torch.tensor([1.0, 2.0]))
    with pytest.warns(UserWarning, match=r"salient_prior: .* since a Parameter cannot be written"):
        model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"Parameter cannot be written.*salient_prior=Learned\("):
        ContrastiveVI.load(tmp_path / "model")
    loaded = ContrastiveVI.load(tmp_path / "model", salient_prior=Learned(torch.zeros(2)))
    assert_same_model(loaded, model)  # the learned values, not those passed in


def test_a_wrong_component_is_refused(tmp_path):
    model = make_model(salient_prior=Learned(torch.zeros(2)))
    with pytest.warns(UserWarning, match="pass the object when loading"):
        model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"(?s)weights do not fit the model.*salient_prior.mean"):
        ContrastiveVI.load(tmp_path / "model", salient_prior=dist.Normal(0.0, 1.0))


def test_an_objective_that_cannot_be_saved_says_so(tmp_path):
    class MyObjective(ContrastiveELBO):
        pass

    model = make_model(trained=False)
    model.module.objective = MyObjective()
    with pytest.raises(TypeError, match="MyObjective cannot be saved"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_the_reference_takes_and_we_cannot_is_an_error(tmp_path):
    model = make_model(trained=False)
    with pytest.raises(ValueError, match="a folder each"):
        model.save(tmp_path / "model", prefix="best_")
    assert not (tmp_path / "model").exists()
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="a folder each"):
        ContrastiveVI.load(tmp_path / "model", prefix="best_")
    with pytest.raises(ValueError, match="accelerator='tpu' is not available"):
        ContrastiveVI.load(tmp_path / "model", accelerator="tpu")
    loaded = ContrastiveVI.load(tmp_path / "model", accelerator="cpu")
    assert {p.device.type for p in loaded.module.parameters()} == {"cpu"}


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    make_model(trained=False).save(tmp_path / "model")
    modes = {f.name: f.stat().st_mode & 0o777 for f in (tmp_path / "model").iterdir()}
    (tmp_path / "plain").write_text("")
    assert set(modes.values()) == {(tmp_path / "plain").stat().st_mode & 0o777}


class Unusual(Forgetful):
    def __init__(this, percent: float) -> None:  # noqa: N805  # any name will do for the object
        super().__init__(percent)
        this.percent = percent


def test_the_object_of_a_constructor_may_have_any_name():
    assert Unusual(3.0).spec()["arguments"] == {"percent": 3.0}


def test_litter_in_its_folder_hinders_no_model_from_being_saved_again(tmp_path):
    adata = simulate(SimulationSettings(n_background=20, n_target=20, n_genes=10), seed=0)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    model = ContrastiveVI(adata, n_hidden=8)
    model.save(tmp_path / "model")
    (tmp_path / "model" / ".DS_Store").touch()
    model.save(tmp_path / "model", overwrite=True)
    (tmp_path / "model" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        model.save(tmp_path / "model", overwrite=True)


def test_strings_of_pandas_3_are_written_and_read(tmp_path):
    adata = simulate(SimulationSettings(n_background=20, n_target=20, n_genes=10), seed=0)
    adata.obs["note"] = pd.array(["a", None] * 20, dtype="string")
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    ContrastiveVI(adata, n_hidden=8).save(tmp_path / "model", save_anndata=True)
    loaded = ContrastiveVI.load(tmp_path / "model").adata
    assert loaded.obs["note"].isna().tolist() == [False, True] * 20


def test_the_element_that_cannot_be_written_is_named(tmp_path):
    model = make_model(trained=False)
    model.adata.uns["deep"] = {"er": {"mine": object()}}
    with pytest.raises(ValueError, match=r"adata\.uns\['deep'\]\['er'\]\['mine'\] cannot be wri"):
        model.save(tmp_path / "model", save_anndata=True)
    assert not list(tmp_path.iterdir())
    model.adata.obs["mixed"] = np.resize(np.array([1, "a"], dtype=object), 40)
    with pytest.raises(ValueError, match=r"adata\.obs\['mixed'\] .*save_anndata=True"):
        model.save(tmp_path / "model", save_anndata=True)
