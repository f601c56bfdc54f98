"""Files that are not those that were saved are refused; a training is repeated from its folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kill_helpers import every_kill
from saved_files import as_format_1, edit_config
from small_model import make, small_adata

from pyro_contrastive import ContrastiveVI, InvalidFileError
from pyro_contrastive.saving import folder as folders

QUIET: dict[str, Any] = {"enable_progress_bar": False, "accelerator": "cpu"}
FILES = ["config.json", "model.safetensors", "adata.h5ad"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    model = make(small_adata())
    model.train(max_epochs=1, seed=0, batch_size=8, **QUIET)
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder, save_anndata=True)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def weights(model: ContrastiveVI) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(one: ContrastiveVI, other: ContrastiveVI) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", FILES)
def test_a_single_bit_that_differs_is_found(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-100 if name == "model.safetensors" else len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(InvalidFileError, match=f"{name} .*damaged"):
        ContrastiveVI.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_save_is_refused(folder, tmp_path, name):
    other = ContrastiveVI.load(folder)
    other.train(max_epochs=1, seed=1, **QUIET)
    other.adata.obs["more"] = 1
    other.save(tmp_path / "other", save_anndata=True)
    shutil.copy(tmp_path / "other" / name, folder / name)
    with pytest.raises(InvalidFileError, match="checksum differs"):
        ContrastiveVI.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["setup"]["genes"].reverse(),
        lambda config: config["setup"]["categories"]["condition"].reverse(),
        lambda config: config["settings"].update(wasserstein_penalty=3.0),
        lambda config: config["history"]["elbo_train"].update({"0": 1.0}),
        lambda config: config["versions"].update(torch="0.1"),
        lambda config: config.update(format=1),
        lambda config: config["training"][0]["arguments"].update(seed=3),
        lambda config: config["checksums"].pop("adata.h5ad"),
        lambda config: config.update(more=1),
    ],
)
def test_a_configuration_that_was_edited_is_refused(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(InvalidFileError, match=r"config\.json was changed after it was saved"):
        ContrastiveVI.load(folder)


@pytest.mark.parametrize("name", ["checksums", "training"])
def test_a_configuration_of_the_second_format_is_complete(folder, name):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config[name]
    path.write_text(json.dumps(config))
    with pytest.raises(InvalidFileError, match=f"it has no '{name}'"):
        ContrastiveVI.load(folder)


def test_the_layout_of_the_configuration_may_change(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=8))
    assert ContrastiveVI.load(folder).is_trained


def test_models_of_the_first_format_load(folder):
    model = ContrastiveVI.load(folder)
    as_format_1(folder)
    loaded = ContrastiveVI.load(folder)
    assert same(loaded, model)
    assert loaded.training_calls == []
    with pytest.raises(ValueError, match="saved by a version that did not note how"):
        loaded.repeat_training()
    loaded.save(folder, overwrite=True)
    assert same(ContrastiveVI.load(folder), model)


def test_weights_of_another_kind_of_number_are_not_converted(folder):
    as_format_1(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"dtype":"F32"', b'"dtype":"I32"', 1))
    with pytest.raises(InvalidFileError, match=r"holds numbers of type torch\.int32"):
        ContrastiveVI.load(folder)


@pytest.mark.parametrize("n", [10**5, 10**9, 0, -1, True, 1.5, "3"])
def test_a_file_cannot_ask_for_endless_work(folder, n):
    edit_config(folder, lambda config: config["settings"].update(elbo_kwargs={"num_particles": n}))
    with pytest.raises(InvalidFileError, match="num_particles"):
        ContrastiveVI.load(folder)


def test_what_is_not_there_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        ContrastiveVI.load(tmp_path)


# The training again


@pytest.mark.parametrize("seed", [3, None])
def test_a_training_is_repeated_from_its_folder(tmp_path, seed):
    adata = small_adata()
    model = make(adata)
    arguments = {"seed": seed, "batch_size": 5, "schedule": "fast", "plan_kwargs": {"lr": 0.01}}
    model.train(max_epochs=2, **arguments, **QUIET)
    model.train(max_epochs=1, seed=seed, **QUIET)
    model.save(tmp_path / "model")
    loaded = ContrastiveVI.load(tmp_path / "model", adata)
    before = torch.get_rng_state()
    assert not torch.equal(
        *(next(m.parameters()) for m in (loaded._untrained_module, model.module))
    )
    again = loaded.repeat_training()
    assert same(again, model)
    assert torch.equal(torch.get_rng_state(), before) or seed is None
    calls = loaded.training_calls
    assert [call["max_epochs"] for call in calls] == [2, 1]
    assert calls == model.training_calls
    assert calls[0].items() >= arguments.items()
    assert calls[0]["threads"] == 1
    assert calls[0]["device"] == "cpu"
    versions = json.loads((tmp_path / "model" / "config.json").read_text())["versions"]
    assert {"python", "torch", "numpy", "lightning-fabric"} <= set(versions)


def test_indices_are_saved_and_functions_are_named(tmp_path):
    adata = small_adata()
    model = make(adata, condition_key=None)
    model.train(np.arange(12), np.arange(26) >= 12, max_epochs=1, seed=0, **QUIET)
    model.save(tmp_path / "model")
    loaded = ContrastiveVI.load(tmp_path / "model", adata)
    assert loaded.training_calls[0]["background_indices"] == list(range(12))
    assert same(loaded.repeat_training(), model)
    plan = {"optimizer": "Custom", "optimizer_creator": torch.optim.Adagrad}
    model.train(np.arange(12), np.arange(12, 26), max_epochs=1, plan_kwargs=plan, **QUIET)
    model.save(tmp_path / "model", overwrite=True)
    with pytest.raises(ValueError, match="trained with plan_kwargs, which a file cannot hold"):
        ContrastiveVI.load(tmp_path / "model", adata).repeat_training()


# Several at once


def two_saves(tmp_path: Path) -> tuple[ContrastiveVI, ContrastiveVI]:
    """Models that differ in weights and in the length of their history."""
    models = [make(small_adata()) for _ in range(2)]
    for n, model in enumerate(models):
        model.train(max_epochs=1 + n, seed=n, **QUIET)
        model.save(tmp_path / f"{n}", save_anndata=True)
    return models[0], models[1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed by forking")
def test_a_kill_at_any_file_event_leaves_a_model_that_loads(tmp_path):
    old, new = two_saves(tmp_path)
    place = tmp_path / "models" / "model"

    def reset() -> None:
        shutil.rmtree(place.parent, ignore_errors=True)
        shutil.copytree(tmp_path / "0", place)

    found = []
    for _ in every_kill(lambda: new.save(place, overwrite=True, save_anndata=True), reset):
        loaded = ContrastiveVI.load(place)
        found.append(loaded._history.n_epochs)
        assert same(loaded, old if found[-1] == 1 else new)
        new.save(place, overwrite=True)
        assert os.listdir(place.parent) == ["model"]
    assert set(found) == {1, 2}
    print(f"{len(found)} kills: {found.count(1)} left the old model, {found.count(2)} the new one")


@pytest.mark.slow
@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="another process writes")
def test_readers_see_one_save_or_the_other(tmp_path, monkeypatch, can_exchange):
    old, new = two_saves(tmp_path)
    place = tmp_path / "models" / "model"
    shutil.copytree(tmp_path / "0", place)
    if not can_exchange:
        monkeypatch.setattr("pyro_contrastive._tools.atomic.exchange", cannot_exchange)
    child = os.fork()
    if child == 0:
        try:
            while True:
                for model in (new, old):
                    model.save(place, overwrite=True)
        finally:
            os._exit(1)
    try:
        found = []
        for _ in range(60):
            loaded = ContrastiveVI.load(place)
            found.append(loaded._history.n_epochs)
            assert same(loaded, old if found[-1] == 1 else new)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert set(found) == {1, 2}


def cannot_exchange(*_: Any) -> None:
    raise OSError(22, "Invalid argument")


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(folder, tmp_path, monkeypatch):
    old, new = two_saves(tmp_path)
    shutil.rmtree(folder)
    old.save(folder)
    read_config, calls = folders.read_config, []

    def replaced_after(path: Path) -> dict[str, Any]:
        config = read_config(path)
        calls.append(path)
        if len(calls) == 1:
            new.save(folder, overwrite=True)
        return config

    monkeypatch.setattr(folders, "read_config", replaced_after)
    loaded = ContrastiveVI.load(folder)
    assert same(loaded, new)
    assert loaded._history.n_epochs == 2
    assert len(calls) > 1
