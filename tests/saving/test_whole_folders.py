"""A folder is replaced as a whole, whenever its writer is killed."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kill_helpers import every_kill

from pyro_contrastive._tools import atomic
from pyro_contrastive._tools.atomic import current, is_being_written, whole_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed by forking")


def write(folder: Path, mark: str) -> None:
    with whole_folder(folder) as new:
        (new / "a").write_text(mark)
        (new / "deep").mkdir()
        (new / "deep" / "b").write_text(mark)


def content(folder: Path) -> dict[str, str]:
    return {
        f.relative_to(folder).as_posix(): f.read_text() for f in folder.rglob("*") if f.is_file()
    }


def of(mark: str) -> dict[str, str]:
    return {"a": mark, "deep/b": mark}


def start_again(tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    return tmp_path / "folder"


def cannot(*_: Any) -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize("can_exchange", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_kill_at_any_file_event_leaves_the_old_folder_or_the_new(
    tmp_path, monkeypatch, can_exchange
):
    if not can_exchange:
        monkeypatch.setattr(atomic, "exchange", cannot)
    folder, found = tmp_path / "folder", []
    for _ in every_kill(lambda: write(folder, "2"), lambda: write(start_again(tmp_path), "1")):
        left = content(current(folder))
        found.append(left["a"])
        assert left == of(found[-1])
        if can_exchange:
            assert folder.is_dir()
        write(folder, "3")  # the next writer removes what the killed one left
        assert content(tmp_path) == {f"folder/{name}": "3" for name in of("3")}
        assert os.listdir(tmp_path) == ["folder"]
    assert found == sorted(found)
    assert set(found) == {"1", "2"}
    assert len(found) > 12


@pytest.mark.slow
def test_a_kill_while_a_folder_is_first_written_leaves_none_or_all_of_it(tmp_path):
    folder, found = tmp_path / "folder", set()
    for _ in every_kill(lambda: write(folder, "1"), lambda: start_again(tmp_path)):
        found.add(folder.exists())
        assert not folder.exists() or content(folder) == of("1")
        write(folder, "2")
        assert os.listdir(tmp_path) == ["folder"]
    assert found == {True, False}


@pytest.mark.slow
def test_what_was_moved_aside_is_put_back_by_the_next_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "exchange", cannot)
    folder = tmp_path / "folder"
    were_aside = 0
    for _ in every_kill(lambda: write(folder, "2"), lambda: write(start_again(tmp_path), "1")):
        if folder.exists():
            continue
        were_aside += 1
        assert content(current(folder)) == of("1")
        atomic.tidy(folder)
        assert content(folder) == of("1")
        assert os.listdir(tmp_path) == ["folder"]
    assert were_aside == 1


def test_a_link_is_written_through(tmp_path):
    write(tmp_path / "real", "1")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == of("2")
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_a_folder_keeps_its_permissions(tmp_path):
    write(tmp_path / "folder", "1")
    (tmp_path / "folder").chmod(0o2750)
    write(tmp_path / "folder", "2")
    assert (tmp_path / "folder").stat().st_mode & 0o7777 == 0o2750


class DiskFullError(OSError):
    pass


@pytest.mark.parametrize("step", ["writing", "flush", "exchange"])
def test_a_failure_changes_nothing(tmp_path, monkeypatch, step):
    folder = tmp_path / "folder"
    write(folder, "1")

    def fail(*_: Any, **__: Any) -> None:
        raise DiskFullError

    if step == "writing":
        monkeypatch.setattr(Path, "write_text", fail)
    else:
        monkeypatch.setattr(atomic, step, fail)
    with pytest.raises(DiskFullError):
        write(folder, "2")
    assert content(folder) == of("1")
    assert os.listdir(tmp_path) == ["folder"]


def test_files_are_on_the_disk_before_names_are_exchanged(tmp_path, monkeypatch):
    write(tmp_path / "folder", "1")
    events: list[str] = []
    sync, exchange = os.fsync, atomic.exchange

    def synced(descriptor: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{descriptor}").rsplit("/", 1)[-1])
        sync(descriptor)

    def exchanged(*names: Path) -> None:
        events.append("exchange")
        exchange(*names)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("names of open files are not known here")
    monkeypatch.setattr(atomic.os, "fsync", synced)
    monkeypatch.setattr(atomic, "exchange", exchanged)
    write(tmp_path / "folder", "2")
    assert sorted(events[: events.index("exchange")]) == ["a", "b", "deep", "new"]
    assert events[events.index("exchange") + 1 :] == [tmp_path.name]


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_what_dead_writers_left_is_removed(tmp_path):
    host = socket.gethostname()
    live = [f".folder.unfinished-{host}-{os.getppid()}-0a1b", ".folder.unfinished-other-7-0a1b"]
    others = [".else.unfinished-{host}-{dead_process()}-0a1b", ".folder.backup"]
    for name in [*live, *others, f".folder.unfinished-{host}-{dead_process()}-0a1b"]:
        (tmp_path / name / "new").mkdir(parents=True)
    assert is_being_written(tmp_path / "folder")
    write(tmp_path / "folder", "1")
    assert sorted(os.listdir(tmp_path)) == sorted([*live, *others, "folder"])


def test_two_folders_are_exchanged_or_nothing_happens(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    atomic.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "file").read_text() == "b"
    with pytest.raises(FileNotFoundError) as caught:
        atomic.exchange(tmp_path / "a", tmp_path / "c")
    assert not atomic.cannot_exchange(caught.value)
    assert caught.value.filename == str(tmp_path / "a")
