"""Checkpoints: when they are written, which are kept, and what is refused."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import make_adata, make_model, same, train, weights

from pyro_contrastive import ContrastiveVI, Wasserstein
from pyro_contrastive._tools import atomic
from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive.saving import checkpoints
from pyro_contrastive.saving.checkpoint_files import read_checkpoint
from pyro_contrastive.saving.packed import pack, unpack

KEPT = {"seed": 0, "checkpoint_every_n_epochs": 1}


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory) -> Path:
    """The checkpoints of a run of 4 epochs that was killed after the third."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        write = checkpoints.CheckpointFolder.write

        def killed(self: Any, state: Any, n_epochs: int, *, is_last: bool) -> None:
            write(self, state, n_epochs, is_last=is_last)
            if n_epochs == 3:
                raise InterruptedError

        patch.setattr(checkpoints.CheckpointFolder, "write", killed)
        with pytest.raises(InterruptedError):
            train(make_model(), 4, **KEPT, checkpoint=folder)
    assert names(folder) == ["epoch_2", "epoch_3"]
    return folder


@pytest.fixture
def run(unfinished: Path, tmp_path: Path) -> Path:
    """A copy of these checkpoints."""
    for file, content in files(unfinished).items():
        (tmp_path / "run" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / file).write_bytes(content)
    return tmp_path / "run"


def test_they_are_written_at_intervals_and_the_last_two_are_kept(tmp_path, monkeypatch):
    written: list[int] = []
    write = checkpoints.write_checkpoint
    monkeypatch.setattr(
        checkpoints,
        "write_checkpoint",
        lambda *args, **kwargs: (written.append(args[1]), write(*args, **kwargs))[1],
    )
    train(make_model(), 5, checkpoint=tmp_path / "a", checkpoint_every_n_epochs=2)
    assert written == [0, 2, 4, 5]
    assert names(tmp_path / "a") == ["epoch_4", "epoch_5"]
    written.clear()
    train(make_model(), 5, checkpoint=tmp_path / "b")  # which takes less than 10 minutes
    assert written == [0, 5]
    written.clear()
    now = iter(range(0, 10**6, 70))  # each look at the clock is 70 seconds after the one before
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(now))
    train(make_model(), 4, checkpoint=tmp_path / "c", checkpoint_every_n_minutes=2)
    assert written == [0, 2, 4]


def test_a_run_that_has_ended_is_put_back_without_training(tmp_path, monkeypatch):
    model = make_model()
    train(model, 3, **KEPT, checkpoint=tmp_path)
    monkeypatch.setattr("pyro_contrastive.training.run.Run.train_epoch", None)
    again = make_model()
    result = train(again, 3, **KEPT, resume=tmp_path)
    assert same(weights(model), weights(again))
    assert result.n_epochs == 3
    assert again.is_trained


def test_a_new_run_does_not_replace_one_that_did_not_end(run):
    before = files(run)
    with pytest.raises(FileExistsError, match=r"did not end \(epoch_3\).*resume="):
        train(make_model(), 4, **KEPT, checkpoint=run)
    assert files(run) == before
    train(make_model(), 4, **KEPT, resume=run)
    train(make_model(), 2, **KEPT, checkpoint=run)  # that one has ended
    assert names(run) == ["epoch_1", "epoch_2"]


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(run):
    whole = make_model()
    train(whole, 4, **KEPT, resume=run, checkpoint=run.parent / "whole")
    data = (run / "epoch_3" / "checkpoint.safetensors").read_bytes()
    flipped = bytes(255 - byte for byte in data[-9:])
    for number, damaged in enumerate((data[:100], data[:-9] + flipped, None)):
        place = run / "epoch_3" / "checkpoint.safetensors"
        place.unlink() if damaged is None else place.write_bytes(damaged)
        model = make_model()
        with pytest.warns(UserWarning, match=r"epoch_3.*Continuing from .*epoch_2"):
            train(model, 4, **KEPT, resume=run, checkpoint=run.parent / f"again {number}")
        assert same(weights(model), weights(whole))
    (run / "epoch_2" / "checkpoint.json").write_text("{")
    before = files(run)
    with pytest.raises(InvalidFileError, match=r"No checkpoint in .* can be read"):
        train(make_model(), 4, **KEPT, resume=run)
    assert files(run) == before


def other_data() -> Any:
    adata = make_adata()
    adata.X = adata.X.copy()
    adata.X[3, 0] += 1
    return make_model(adata)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "width": (lambda: make_model(n_hidden=9), {}, "another model.*n_hidden was 8 and is 9"),
    "penalty": (
        lambda: make_model(penalties=[Wasserstein(2.0)]),
        {},
        "another model.*penalties",
    ),
    "counts": (other_data, {}, "another data set.*total counts differs"),
    "batch size": (make_model, {"batch_size": 64}, "another training.*batch_size was 128 and is"),
    "seed": (make_model, {"seed": 1}, "another training.*seed was 0 and is 1"),
    "length": (make_model, {"max_epochs": 5}, "max_epochs was 4 and is 5"),
    "plan": (make_model, {"plan_kwargs": {"lr": 0.1}}, "plan_kwargs was None and is {'lr': 0.1}"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_checkpoint_of_something_else_is_refused_and_kept(run, name):
    make, changes, message = REFUSED[name]
    model, before, state = make(), files(run), torch.get_rng_state()
    initial = weights(model)
    with pytest.raises(ValueError, match=message):
        train(model, **({"max_epochs": 4} | KEPT | changes), resume=run)
    assert files(run) == before
    assert same(weights(model), initial)
    assert not model.is_trained
    assert torch.equal(state, torch.get_rng_state())


def test_other_versions_are_refused_or_lead_to_a_warning(run, monkeypatch):
    now = dict(checkpoints.versions())
    for module in ("checkpoint_files", "checkpoints"):
        monkeypatch.setattr(
            f"pyro_contrastive.saving.{module}.versions", lambda: now | {"torch": "1.0"}
        )
    with pytest.warns(UserWarning, match=r"torch .*now it is torch 1\.0.*last digits"):
        train(make_model(), 4, **KEPT, resume=run, checkpoint=run.parent / "other")
    monkeypatch.setattr(
        "pyro_contrastive.saving.checkpoint_files.versions", lambda: {"pyro-contrastive": "99"}
    )
    with pytest.raises(ValueError, match="only by the version that began it"):
        train(make_model(), 4, **KEPT, resume=run)


def test_there_must_be_something_to_continue_and_somewhere_to_write(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in"):
        train(make_model(), resume=tmp_path / "none")
    with pytest.raises(ValueError, match="no effect without checkpoint="):
        train(make_model(), checkpoint_every_n_epochs=1)
    with pytest.raises(ValueError, match="checkpoint_every_n_minutes must be at least 0"):
        train(make_model(), checkpoint=tmp_path, checkpoint_every_n_minutes=-1)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        train(make_model(), checkpoint=tmp_path / "file")


@pytest.mark.parametrize("fails", ["mkdir", "flush", "write_bytes"])
def test_a_checkpoint_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch, fails):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole, model = make_model(), make_model()
    model.module.load_state_dict(whole.module.state_dict())
    train(whole, 2, seed=0)
    monkeypatch.setattr(atomic if fails == "flush" else Path, fails, full)
    with pytest.warns(UserWarning, match="No checkpoint could be written.*No space left"):
        train(model, 2, **KEPT, checkpoint=tmp_path / "run")
    assert same(weights(model), weights(whole))
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.*"))


def test_files_of_the_user_are_left_alone(tmp_path):
    (tmp_path / "epoch_1").mkdir()
    (tmp_path / "epoch_1" / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match="in the way"):
        train(make_model(), 3, **KEPT, checkpoint=tmp_path)
    assert (tmp_path / "epoch_1" / "notes.txt").read_text() == "mine"
    assert names(tmp_path) == ["epoch_1", "epoch_2", "epoch_3"]


def test_another_device_or_number_of_threads_leads_to_a_warning(run, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with pytest.warns(UserWarning, match="continued with 7 on cpu"):
        train(make_model(), 4, **KEPT, resume=run)


def test_a_second_training_is_continued_with_its_history_and_calls(tmp_path):
    model = make_model()
    train(model, 2, seed=0)
    first = weights(model)
    train(model, 3, seed=1, checkpoint=tmp_path, checkpoint_every_n_epochs=1)
    again = make_model()
    result = train(again, 3, seed=1, resume=tmp_path, checkpoint_every_n_epochs=1)
    assert result.n_epochs == 3
    assert again.history["elbo_train"].index.tolist() == [0, 1, 2, 3, 4]
    assert same(weights(again), weights(model))
    assert [run.to_json() for run in again._runs] == [run.to_json() for run in model._runs]
    assert not same(first, weights(again))


def test_what_is_packed_is_the_same_unpacked_and_other_objects_are_refused():
    value = {
        "a": [1, 2.5, None, True, float("inf"), 2**100],
        3: {"x": torch.arange(3), "y": np.arange(2.0)},
        "empty": np.empty(0, np.int64),
        "scalar": torch.tensor(2.0, dtype=torch.float64),
    }
    packed, tensors = pack(value)
    found = unpack(json.loads(json.dumps(packed)), tensors)
    assert found["a"] == value["a"]
    assert torch.equal(found[3]["x"], torch.arange(3))
    assert found[3]["y"].tolist() == [0.0, 1.0]
    assert found["empty"].dtype == np.int64
    assert found["scalar"].dtype == torch.float64
    with pytest.raises(TypeError, match="a > 0: a function cannot be written"):
        pack({"a": [len]} | {"a": [pack]})
    with pytest.raises(ValueError, match="no packed 'call'"):
        unpack({"call": "os.system"}, {})


def test_they_hold_nothing_that_could_run(run):
    for path in run.iterdir():
        assert names(path) == ["checkpoint.json", "checkpoint.safetensors"]
        json.loads((path / "checkpoint.json").read_text())
        assert read_checkpoint(path).is_last is False
    (run / "epoch_3" / "checkpoint.json").unlink()
    (run / "epoch_3" / "checkpoint.json").symlink_to("/etc/hostname")
    with pytest.raises(InvalidFileError, match="symbolic link"):
        read_checkpoint(run / "epoch_3")


def test_a_fit_is_made_again_without_its_checkpoints(tmp_path):
    model = make_model()
    train(model, 2, **KEPT, checkpoint=tmp_path)
    assert not any("checkpoint" in name or name == "resume" for name in model._runs[0].arguments)
    assert isinstance(model, ContrastiveVI)
