"""No fit is lost after its training, and none is mixed with a former one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from kill_helpers import every_kill
from stand_ins import SETTINGS, STUDY, StandInModel, small_cells, tree
from typer.testing import CliRunner

from pyro_contrastive.cli import app
from pyro_contrastive.report import again, pipeline, publish, results, stages
from pyro_contrastive.report import folder as folder_module
from pyro_contrastive.report.failures import ResultsError
from pyro_contrastive.report.figures import FigureSet
from pyro_contrastive.report.folder import ResultsFolder, reserve_folder

ALL = {
    "index.html",
    "cells_latents.h5ad",
    "latents.csv",
    "scores.csv",
    "model",
    "figures",
    "manifest.json",
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Run ``fit`` with a stand-in for the model, whose mark is given."""
    file = tmp_path / "cells.h5ad"
    small_cells().write_h5ad(file)
    monkeypatch.setattr(pipeline, "register", lambda _, study, *__: study)

    def run(out: Path | str, *options: str, mark: str = "1", cells: Path = file) -> Any:
        def make_model(cells: ad.AnnData, *_: Any, **__: Any) -> StandInModel:
            return StandInModel(cells.n_obs, mark)

        monkeypatch.setattr(pipeline, "make_model", make_model)
        arguments = ["--condition-key", "arm", "--background", "ctrl", "--embedding", "pca"]
        return CliRunner().invoke(app, ["fit", str(cells), *arguments, "--out", str(out), *options])

    return run


def write(out: Path | ResultsFolder, mark: str = "1", **change: Any) -> pd.DataFrame:
    call = {"settings": SETTINGS, "seconds": 1.0, "method": "pca", **change}
    return results.write_results(StandInModel(mark=mark), small_cells(), out, STUDY, **call)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


DRAWN = {"maps": "latents", "curves": "training", "scores": "scores"}


def stub(name: str) -> Callable[..., None]:
    def add(figures: FigureSet, *_: Any, **__: Any) -> None:
        figures.files[f"{name}.png"] = b"png"

    return add


@pytest.fixture(autouse=True)
def quick_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, which takes its time, but in the test that looks at the figures."""
    if request.function is test_a_former_run_is_replaced_as_a_whole:
        return
    for part, name in DRAWN.items():
        monkeypatch.setattr(stages, f"add_{part}", stub(name))


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


ERRORS = [
    MemoryError(),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("a\nb"),
    KeyError("k"),
]
WHYS = ["there was not enough memory", "no space is left on the disk", "a b", "KeyError: 'k'"]
# What is replaced by something that fails, what the shell calls it, and what is not there then.
STAGES = [
    (stages, "write_h5ad", "cells_latents.h5ad could not be written", {"cells_latents.h5ad"}),
    (stages, "score_latents", "scores.csv could not be written", {"scores.csv"}),
    (stages, "add_maps", "The maps of the latents could not be made", set()),
    (stages, "add_curves", "The figure of the training could not be made", set()),
    (stages, "add_scores", "The figure of the scores could not be made", set()),
    (FigureSet, "save", "A file in figures/ could not be made", {"figures"}),
    (stages, "write_report", "The page index.html could not be written", {"index.html"}),
]


@pytest.mark.parametrize("at", range(len(STAGES)), ids=[stage[1] for stage in STAGES])
def test_what_fails_after_the_training_costs_one_line_and_itself(
    at: int, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, what, missing = STAGES[at]
    error, why = ERRORS[at % len(ERRORS)], WHYS[at % len(ERRORS)]
    monkeypatch.setattr(owner, name, fail_with(error))
    with pytest.raises(ResultsError) as caught:
        write(out)
    assert len(caught.value.failures) == 1
    assert caught.value.failures[0].startswith(what)
    assert caught.value.failures[0].endswith(f": {why}.")
    assert names(out) == ALL - missing
    assert (out / "model" / "model.safetensors").read_text() == "1"
    if "index.html" not in missing:
        page = (out / "index.html").read_text()
        assert what in page
        assert 'href="#scores"' not in page or 'id="scores"' in page
    table = pd.read_csv(out / "latents.csv", index_col="cell").astype(np.float32)
    assert table.index.tolist() == small_cells().obs_names.tolist()
    model = StandInModel()
    for kind in ("background", "salient"):
        latent = model.get_latent_representation(representation_kind=kind)
        np.testing.assert_array_equal(table[[f"{kind}_{i}" for i in range(3)]], latent)


def test_the_shell_says_so_without_a_traceback(
    shell: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "write_h5ad", writes_then_fails(stages.write_h5ad))
    result = shell(out)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr == "Error: cells_latents.h5ad could not be written: it broke.\n"
    assert "Trained 2 of 7 epochs" in result.stdout
    assert f"In {out} available: figures, index.html, latents.csv, model, scores.csv." in " ".join(
        result.stdout.split()
    )
    assert names(out) == ALL - {"cells_latents.h5ad"}


def writes_then_fails(write_h5ad: Callable[..., None]) -> Callable[..., None]:
    """Leave half of the file behind."""

    def fail(data: ad.AnnData, path: Path, **kwargs: Any) -> None:
        write_h5ad(data, path, **kwargs)
        Path(path).write_bytes(b"half")
        raise ValueError("it broke")

    return fail


def test_what_needs_a_failed_result_is_named_in_the_same_line(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandInModel, "get_latent_representation", fail_with(MemoryError()))
    with pytest.raises(ResultsError) as caught:
        write(out)
    assert caught.value.failures == [
        "The latents could not be made (nor latents.csv, cells_latents.h5ad, scores.csv, The maps "
        "of the latents, The figure of the scores, which need it): there was not enough memory."
    ]
    assert names(out) == {"model", "figures", "index.html", "manifest.json"}
    assert names(out / "figures") == {"training.png"}


def fail_to_save(folder_part: str) -> Callable[..., None]:
    save = StandInModel.save

    def saving(model: StandInModel, dir_path: str, *, overwrite: bool = False) -> None:
        if folder_part in dir_path:
            Path(dir_path).mkdir(parents=True)
            raise OSError(errno.ENOSPC, "No space left on device")
        save(model, dir_path, overwrite=overwrite)

    return saving


def test_a_model_that_cannot_be_written_goes_to_the_temporary_folder(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    monkeypatch.setattr(StandInModel, "save", fail_to_save(".unfinished"))
    with pytest.raises(
        ResultsError, match="no space is left on the disk; it was saved in"
    ) as error:
        write(out)
    [saved] = spare.rglob("model.safetensors")
    assert saved.read_text() == "1"
    assert str(saved.parent) in error.value.failures[0]
    assert names(out) == ALL - {"model"}


def test_results_without_a_model_do_not_replace_a_former_run(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(out)
    before = tree(out)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(StandInModel, "save", fail_to_save(".unfinished"))
    with pytest.raises(ResultsError, match="new_results_"):
        write(out, "2")
    [aside] = out.glob("new_results_*")
    assert names(aside) >= ALL - {"model", "manifest.json"}
    assert {path: data for path, data in tree(out).items() if "new_results" not in path} == before


def test_a_former_run_is_replaced_as_a_whole(out: Path) -> None:
    write(out)
    first = tree(out)
    assert "figures/salient_by_labels.png" in first
    unlabelled = type(STUDY)(**{**vars(STUDY), "label_key": None, "name": "other"})
    model = StandInModel(mark="2")
    call = {"settings": SETTINGS, "seconds": 1.0, "method": "pca"}
    results.write_results(model, small_cells(), out, unlabelled, **call)
    second = tree(out)
    assert not [name for name in second if "labels" in name]
    assert "cells_latents.h5ad" not in second
    assert set(json.loads(second["manifest.json"])["files"]) == set(second)
    same = {name for name, data in first.items() if second.get(name) == data}
    assert same <= {"model/config.json", "figures/training.png"}


def test_a_folder_without_a_manifest_is_known_by_what_it_holds(out: Path) -> None:
    write(out)
    (out / "manifest.json").unlink()
    (out / "latents.csv").unlink()  # as versions before wrote none
    write(out, "2")
    assert names(out) == ALL
    assert (out / "model" / "model.safetensors").read_text() == "2"


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no folder be exchanged as a whole, as where a disk is mounted at it."""
    monkeypatch.setattr(publish, "exchange", fail_with(OSError(errno.EBUSY, "Busy")))


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, *range(2, 14)])  # 1 puts the new folder itself back
def test_if_files_cannot_be_moved_the_former_run_is_as_it_was(
    at: int, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(out)
    (out / "notes.txt").write_text("mine")
    before = tree(out)
    rename, calls = os.rename, []
    one_by_one(monkeypatch)

    def renaming(origin: Any, place: Any) -> None:
        calls.append(origin)
        if len(calls) == at + 1:
            raise PermissionError(errno.EACCES, "Permission denied")
        rename(origin, place)

    monkeypatch.setattr(publish.os, "rename", renaming)
    if at == 0:  # no folder can be made beside it, which is no failure
        write(out, "2")
        assert tree(out)["model/model.safetensors"] == b"2"
        return
    with pytest.raises(ResultsError, match="could not be moved into") as caught:
        write(out, "2")
    assert "Permission denied" in caught.value.failures[0]
    [aside] = out.glob("new_results_*")
    assert str(aside) in caught.value.kept
    after = tree(out)
    assert {path: data for path, data in after.items() if "new_results" not in path} == before
    assert (aside / "model" / "model.safetensors").read_text() == "2"
    assert names(aside) == ALL


def test_there_are_as_many_moves_as_the_test_above_lets_fail(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(out)
    rename, calls = os.rename, []
    one_by_one(monkeypatch)
    monkeypatch.setattr(publish.os, "rename", lambda *paths: (calls.append(paths), rename(*paths)))
    write(out, "2")
    assert len(calls) == 14  # the folder there and back, and six entries of either run
    assert tree(out)["model/model.safetensors"] == b"2"
    assert names(out) == ALL


def published_anew(out: Path, staged: Path) -> Callable[[], None]:
    """Return what puts the second run's files, which are staged, in the place of the first's."""

    def act() -> None:
        with reserve_folder(out, STUDY.name, overwrite=True) as folder:
            shutil.copytree(staged, folder.new, dirs_exist_ok=True)
            folder.publish()

    return act


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_a_kill_leaves_one_run_or_a_folder_that_says_it_is_unfinished(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    def reset() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "1", out)
        (out / "notes.txt").write_text("mine")

    for mark in ("1", "2"):
        write(tmp_path / mark, mark)
    reset()
    before, note = tree(out), (out / "notes.txt").read_bytes()
    after = {**tree(tmp_path / "2"), "notes.txt": note}
    act = published_anew(out, tmp_path / "2")
    if not whole:
        one_by_one(monkeypatch)
    counts = {"before": 0, "after": 0, "unfinished": 0}
    for _ in every_kill(act, reset):
        left = {path: data for path, data in tree(out).items() if ".unfinished-" not in path}
        assert left["notes.txt"] == note
        if "UNFINISHED.txt" in left:
            counts["unfinished"] += 1
            with pytest.raises(ValueError, match="is unfinished: a run is moving"):
                again.data_file(out)
        else:
            state = "before" if left["index.html"] == before["index.html"] else "after"
            counts[state] += 1
            wanted = before if state == "before" else after
            if not whole:  # at the first and last moments it may list the files of both runs
                left["manifest.json"] = wanted["manifest.json"]
            assert left == wanted
        act()
        assert tree(out) == after
        assert names(tmp_path) == {"1", "2", "out"}
    assert counts["before"] > 5
    assert counts["after"] > 5
    assert (counts["unfinished"] == 0) == whole


@pytest.mark.parametrize("names_of_litter", [[".DS_Store", "._x", "Thumbs.db"], [".nfs01", ".X"]])
def test_litter_hinders_nothing(shell: Any, out: Path, names_of_litter: list[str]) -> None:
    out.mkdir()
    names_of_litter = [name for name in names_of_litter if name != ".X"]
    for name in names_of_litter:
        (out / name).touch()
    (out / ".ipynb_checkpoints").mkdir()
    assert shell(out).exit_code == 0  # as into an empty folder, without --overwrite
    for name in names_of_litter:
        for folder in ("model", "figures"):
            (out / folder / name).touch()
            (out / folder / ".ipynb_checkpoints").mkdir(exist_ok=True)
            (out / folder / ".ipynb_checkpoints" / "config-checkpoint.json").touch()
    result = shell(out, "--overwrite", mark="2")
    assert result.exit_code == 0, result.output
    assert (out / "model" / "model.safetensors").read_text() == "2"
    assert names(out) == ALL | {*names_of_litter, ".ipynb_checkpoints"}


def test_what_is_the_users_own_stays(shell: Any, out: Path) -> None:
    assert shell(out).exit_code == 0
    (out / "notes.txt").write_text("mine")
    (out / "more").mkdir()
    (out / "more" / "page.html").write_text("mine too")
    assert shell(out, "--overwrite", mark="2").exit_code == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "more" / "page.html").read_text() == "mine too"


def put_file(name: str) -> Callable[[Path], None]:
    def put(out: Path) -> None:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")

    return put


def folder_for_file(name: str) -> Callable[[Path], None]:
    def put(out: Path) -> None:
        (out / name).unlink()
        (out / name).mkdir()

    return put


def file_for_folder(out: Path) -> None:
    for path in (out / "figures").iterdir():
        path.unlink()
    (out / "figures").rmdir()
    (out / "figures").write_text("mine")


def damaged_manifest(text: str) -> Callable[[Path], None]:
    return lambda out: (out / "manifest.json").write_text(text) and None


OUTSIDE = '{"written_by": "pyro-contrastive", "files": ["../precious"]}'


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (put_file("model/notes.txt"), "model/notes.txt"),
        (put_file("figures/mine.png"), "figures/mine.png"),
        (put_file("figures/sub/mine.png"), "figures/sub"),
        (folder_for_file("scores.csv"), "scores.csv"),
        (folder_for_file("figures/scores.png"), "figures/scores.png"),
        (file_for_folder, "figures"),
        (damaged_manifest("{}"), "manifest.json"),
        (damaged_manifest("no json"), "manifest.json"),
        (damaged_manifest(OUTSIDE), "manifest.json"),
    ],
)
def test_what_overwriting_would_delete_is_refused_before_any_work(
    change: Callable[[Path], None],
    hint: str,
    shell: Any,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert shell(out).exit_code == 0
    change(out)
    before = tree(out)
    monkeypatch.setattr(StandInModel, "train", fail_with(AssertionError("work was begun")))
    assert_mistake(shell(out, "--overwrite", mark="2"), hint, "elsewhere")
    assert tree(out) == before


def assert_mistake(result: Any, *hints: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for hint in hints:
        assert hint in result.stderr


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_file_of_a_results_name_is_not_taken_for_a_result(
    name: str, shell: Any, out: Path
) -> None:
    out.mkdir()
    (out / name).write_text("mine")
    assert_mistake(shell(out, "--overwrite"), name, "elsewhere")
    assert tree(out) == {name: b"mine"}


def test_the_data_are_never_deleted_as_a_former_result(shell: Any, out: Path) -> None:
    assert shell(out).exit_code == 0
    data = out / "cells_latents.h5ad"
    assert_mistake(shell(out, "--overwrite", cells=data), "cells_latents.h5ad", "another folder")
    assert data.exists()


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_run_left_does_not_block_the_next(shell: Any, out: Path) -> None:
    left = out / f".unfinished-{socket.gethostname()}-{dead_process()}-0a1b2c3d"
    (left / "new" / "model").mkdir(parents=True)
    assert_mistake(shell(out), left.name, "killed", "--overwrite")
    assert shell(out, "--overwrite").exit_code == 0
    assert names(out) == ALL


def test_a_run_that_is_going_on_is_left_alone(shell: Any, out: Path) -> None:
    going_on = [
        f".unfinished-{socket.gethostname()}-{os.getppid()}-0a1b2c3d",
        ".unfinished-other-host-7-0a1b2c3d",
    ]
    for name in going_on:
        (out / name).mkdir(parents=True)
        assert_mistake(shell(out, "--overwrite"), "another run", name)
        assert names(out) == {name}
        (out / name).rmdir()
    with reserve_folder(out, "x", overwrite=True) as folder:
        assert_mistake(shell(out, "--overwrite"), "another run", folder.staging.name)
    assert names(out.parent) == {"cells.h5ad", "out"}  # it was there before


def test_a_refused_fit_leaves_no_folder(
    shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "register", fail_with(ValueError("no counts")))
    assert_mistake(shell(tmp_path / "a" / "b"), "no counts")
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    assert_mistake(shell(tmp_path / "a" / "b"), "no counts")
    assert names(tmp_path) == {"a", "cells.h5ad"}


def test_a_training_that_fails_leaves_the_former_run(
    shell: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell(out).exit_code == 0
    before = tree(out)
    monkeypatch.setattr(StandInModel, "train", fail_with(RuntimeError("diverged")))
    result = shell(out, "--overwrite", mark="2")
    assert str(result.exception) == "diverged"
    assert tree(out) == before
    assert names(out) == ALL


def test_folders_that_cannot_be_used_are_one_line(
    shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert_mistake(shell(tmp_path / "file"), "is a file")
    assert_mistake(shell(tmp_path / "file" / "out"), "is not writable", "Not a directory")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert_mistake(shell(tmp_path / "link"), "broken link")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert_mistake(shell(tmp_path / "loop"), "loop")
    assert_mistake(shell(tmp_path / ("n" * 300)), "name too long")
    monkeypatch.setattr(Path, "mkdir", fail_with(OSError(errno.EROFS, "Read-only file system")))
    assert_mistake(shell(tmp_path / "o"), "is not writable: Read-only file system")


def test_a_read_only_folder_of_the_former_run_is_refused(
    shell: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell(out).exit_code == 0
    access = os.access
    monkeypatch.setattr(
        folder_module.os,
        "access",
        lambda path, mode, **options: Path(path).name != "model" and access(path, mode, **options),
    )
    assert_mistake(shell(out, "--overwrite"), f"{out / 'model'}", "read-only")


@pytest.mark.slow
def test_links_and_the_current_folder(
    shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for mark in ("1", "2"):
        assert shell(tmp_path / "link", "--overwrite", mark=mark).exit_code == 0
    assert names(tmp_path / "real") == ALL
    assert (tmp_path / "link").is_symlink()
    monkeypatch.chdir(tmp_path)
    assert_mistake(shell("."), "is not empty")
    for mark in ("1", "2"):
        assert shell(".", "--overwrite", mark=mark).exit_code == 0
    assert names(tmp_path) == ALL | {"real", "link", "cells.h5ad"}


def test_a_folder_deleted_during_the_training_is_made_again(
    shell: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = StandInModel.train

    def deleting(model: StandInModel, **kwargs: Any) -> Any:
        subprocess.run(["rm", "-r", str(out)], check=True)
        return train(model, **kwargs)

    monkeypatch.setattr(StandInModel, "train", deleting)
    assert shell(out).exit_code == 0
    assert names(out) == ALL


def test_ctrl_c_while_results_are_written_keeps_those_that_are(
    shell: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "add_maps", fail_with(KeyboardInterrupt()))
    result = shell(out)
    assert result.exit_code == 130
    assert result.stderr.startswith("Error: Interrupted; not made: The maps of the latents, ")
    assert "The page index.html. In " in result.stderr
    assert names(out) == {
        "model",
        "latents.csv",
        "cells_latents.h5ad",
        "scores.csv",
        "manifest.json",
    }


def test_ctrl_c_waits_for_the_model(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = StandInModel.save

    def interrupted(model: StandInModel, dir_path: str, *, overwrite: bool = False) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        save(model, dir_path, overwrite=overwrite)

    monkeypatch.setattr(StandInModel, "save", interrupted)
    # The tests themselves may run where Ctrl-C is ignored, as in the background of a script.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="not made: The latents"):
            write(out)
    finally:
        signal.signal(signal.SIGINT, before)
    assert names(out) == {"model", "manifest.json"}
    assert (out / "model" / "model.safetensors").read_text() == "1"


def test_ctrl_c_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as by nohup
    try:
        with folder_module.interrupts_wait():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_disk_that_has_filled_up_costs_what_has_no_room(
    shell: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, usage = StandInModel.train, folder_module.shutil.disk_usage

    def filling(model: StandInModel, **kwargs: Any) -> Any:
        monkeypatch.setattr(
            folder_module.shutil, "disk_usage", lambda path: usage(path)._replace(free=1000)
        )
        return train(model, **kwargs)

    monkeypatch.setattr(StandInModel, "train", filling)
    result = shell(out)
    assert result.stderr == (
        "Error: cells_latents.h5ad could not be written: no space is left on the disk.\n"
    )
    assert names(out) == ALL - {"cells_latents.h5ad"}


def test_nobody_reading_the_output_costs_nothing(
    shell: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "print_training", fail_with(BrokenPipeError()))
    monkeypatch.setattr(pipeline, "print_summary", fail_with(UnicodeError()))
    assert shell(out).exit_code == 0
    assert names(out) == ALL


def test_figures_that_no_run_has_drawn_are_not_replaced(tmp_path):
    (tmp_path / "figures").mkdir()
    mine = tmp_path / "figures" / "scores.png"
    mine.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="figures"):
        ResultsFolder(tmp_path, "in_latents", overwrite=True)
    assert mine.read_bytes() == b"mine"


def test_results_do_not_go_into_the_store_that_is_read(tmp_path):
    (tmp_path / "store.zarr").mkdir()
    for out in (tmp_path / "store.zarr", tmp_path / "store.zarr" / "new"):
        with pytest.raises(FileExistsError, match="is inside the data"):
            ResultsFolder(out, "x", overwrite=True, source=tmp_path / "store.zarr")
