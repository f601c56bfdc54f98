"""Compiled code whose cache is damaged, full or gone is compiled again, and is the same code."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_contrastive.density import code_cache, rows

numba = pytest.importorskip("numba")

SOURCE = """
from numba import njit
from pyro_contrastive.density.code_cache import forgiving

@forgiving
@njit(cache=True)
def inner(x):
    return 2 * x

@forgiving
@njit(cache=True)
def outer(x, fail):
    if fail:
        raise ValueError("one of ours")
    return inner(x) + 1
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that loads two functions anew, as another process would."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(code_cache, "_logged_folders", set())
    (tmp_path / "source.py").write_text(SOURCE)

    def load() -> Any:
        spec = util.spec_from_file_location("source", tmp_path / "source.py")
        module = util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "source", module)
        spec.loader.exec_module(module)
        return module

    return load


def files(tmp_path: Path, ending: str) -> list[Path]:
    return sorted((tmp_path / "cache").rglob(f"*.{ending}"))


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "compiled code in" in r.getMessage()]


def test_code_is_kept(load, tmp_path, caplog):
    assert load().outer(3, False) == 7
    assert len(files(tmp_path, "nbi")) == len(files(tmp_path, "nbc")) == 2
    again = load()
    assert again.outer(3, False) == 7
    assert sum(again.outer.stats.cache_hits.values()) == 1
    assert not logged(caplog)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def put_garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(2000))


def put_other_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"not": "a cache"}))


def put_own_version(path: Path) -> None:
    path.write_bytes(pickle.dumps(numba.__version__) + b"no more of it")


def make_unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()  # to root, no file is


DAMAGES = [Path.touch, truncate, put_garbage, put_other_pickle, make_unreadable]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [*DAMAGES, put_own_version])
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_damaged_files_cost_the_cache_only(load, tmp_path, caplog, damage, ending):
    load().outer(3, False)
    for path in files(tmp_path, ending):
        if damage is Path.touch:
            path.write_bytes(b"")  # what a killed job leaves
        else:
            damage(path)
    again = load()
    assert again.outer(3, False) == 7
    assert again.outer(2.5, False) == 6.0  # other types: other code
    assert load().outer(3, False) == 7
    lines = logged(caplog)
    assert len(lines) <= 1
    if lines:
        assert str(tmp_path / "cache") in lines[0]
        assert "compiled again" in lines[0]
    else:  # numba itself takes no notice of these
        assert (damage, ending) in {(put_other_pickle, "nbi"), (make_unreadable, "nbc")}


def test_a_cache_of_another_version_is_no_failure(load, tmp_path, caplog):
    load().outer(3, False)
    for path in files(tmp_path, "nbi"):
        path.write_bytes(pickle.dumps("0.1") + b"in another format")
    assert load().outer(3, False) == 7
    assert not logged(caplog)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_disk_is_logged_once(load, tmp_path, caplog, monkeypatch, number):
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._save_data", fail)
    assert load().outer(3, False) == 7
    assert load().outer(3, False) == 7
    (line,) = logged(caplog)
    assert os.strerror(number) in line
    assert str(tmp_path / "cache") in line


def test_a_folder_that_vanishes_is_made_again_or_done_without(load, tmp_path, caplog):
    module = load()
    shutil.rmtree(tmp_path / "cache")
    assert module.outer(3, False) == 7
    assert files(tmp_path, "nbc")
    module = load()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder")
    assert module.outer(3, False) == 7
    assert len(logged(caplog)) == 1


@pytest.mark.slow
def test_errors_of_the_code_itself_are_not_hidden(load, tmp_path, caplog):
    for path in (None, *files(tmp_path, "nbi")):
        if path is not None:
            path.write_bytes(b"")
        with pytest.raises(ValueError, match="one of ours"):
            load().outer(3, True)
    with pytest.raises(numba.core.errors.TypingError):
        load().outer("text", False)
    assert not logged(caplog)


# The library's own


@pytest.fixture
def anew():
    """Let the compiled code be looked for again."""
    rows.kernel.cache_clear()
    yield
    rows.kernel.cache_clear()


@pytest.mark.slow
def test_everything_is_compiled_before_the_first_step(anew):
    compiled = rows.kernel()
    before = {n: len(getattr(compiled, n).signatures) for n in ("tables", "count_rows")}
    assert before == {"tables": 1, "count_rows": 1}
    n = rows.BLOCK + 3
    for dropout in (None, np.zeros((n, 4), np.float32)):
        value, scale, library, t = (
            rows.torch.ones(*shape) for shape in ((n, 4), (n, 4), (n, 1), (4,))
        )
        logits = None if dropout is None else rows.torch.from_numpy(dropout)
        rows.by_rows(value, scale, library, t, logits)
    assert {n: len(getattr(compiled, n).signatures) for n in before} == before


@pytest.mark.parametrize(
    ("error", "is_theirs"),
    [
        (numba.core.errors.LoweringError("no such instruction"), True),
        (RuntimeError("no locator available"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (ValueError("one of ours"), False),
        (IndexError("one of ours"), False),
    ],
)
def test_only_failures_of_compiling_are_done_without(anew, monkeypatch, caplog, error, is_theirs):
    def fail() -> None:
        raise error

    monkeypatch.setattr("pyro_contrastive.density.kernel.compile_all", fail)
    with caplog.at_level(logging.INFO, logger="pyro_contrastive"):
        if is_theirs:
            assert rows.kernel() is None
            assert rows.kernel() is None
            (line,) = [r.getMessage() for r in caplog.records]
            assert "Training without compiled code" in line
        else:
            with pytest.raises(type(error), match="one of ours"):
                rows.kernel()


def test_a_numba_that_does_not_work_here_is_done_without(anew, monkeypatch, caplog):
    def fail(name: str) -> None:
        msg = "llvmlite was built for another system"
        raise AttributeError(msg)

    monkeypatch.setattr(rows, "import_module", fail)
    with caplog.at_level(logging.INFO, logger="pyro_contrastive"):
        assert rows.kernel() is None
    assert "built for another system" in caplog.text


@pytest.mark.slow
def test_training_with_a_damaged_cache_gives_the_same_weights(tmp_path):
    code = """
import torch, pyro_contrastive
from pyro_contrastive import ContrastiveVI
from pyro_contrastive.data import load_kang
pyro_contrastive.settings.seed = 0
adata = load_kang()[::8].copy()
ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
model = ContrastiveVI(adata, n_hidden=8)
model.train(max_epochs=1, seed=0, enable_progress_bar=False)
print(sum(p.double().abs().sum().item() for p in model.module.parameters()))
"""

    def run() -> tuple[str, str]:
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout, done.stderr

    fresh, log = run()
    assert "cannot be used" not in log
    for path in (tmp_path / "cache").rglob("*.nbi"):
        path.write_bytes(b"")
    again, log = run()
    assert again == fresh
    assert log.count("cannot be used") == 1
