"""``fit --resume`` continues a fit that was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pyro_contrastive import __version__
from pyro_contrastive._tools import unfinished
from pyro_contrastive.cli import app
from pyro_contrastive.report.folder import ResultsFolder, reserve_folder
from pyro_contrastive.report.resume import killed_run, note_command, noted_command
from pyro_contrastive.testing import SimulationSettings, simulate

FIT = """
import os, signal, sys
from pyro_contrastive.cli import app
from pyro_contrastive.saving import checkpoints

write, last = checkpoints.write_checkpoint, int(sys.argv.pop())

def write_and_die(*args, **kwargs):
    path = write(*args, **kwargs)
    if args[1] == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return path

checkpoints.write_checkpoint = write_and_die
checkpoints.CheckpointFolder.is_due = lambda self, n_epochs, *, is_last: True
app()
"""


def left_by_a_killed_run(out: Path, *, at: str | None = None) -> Path:
    """Make what a run leaves that was killed, by a process that is no more."""
    folder = ResultsFolder(out, "cells", overwrite=False)
    note_command(folder, {"counts": out.parent / "cells.h5ad", "out": out, "seed": 3})
    (folder.checkpoints / "epoch_3").mkdir(parents=True)
    (folder.new / "half").touch()
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    host = at or unfinished.socket.gethostname()
    killed = out / f".unfinished-{host}-{process.pid}-0a1b"
    shutil.move(folder.staging, killed)
    return killed


def failed(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["fit", *arguments])
    assert done.exit_code == 2, done.output
    assert done.output.startswith("Error: ")
    return done.output


def test_the_command_is_noted_and_found_again(tmp_path):
    killed = left_by_a_killed_run(tmp_path / "out")
    assert killed_run(tmp_path / "out") == killed
    assert noted_command(killed) == {"counts": str(tmp_path / "cells.h5ad"), "seed": 3}
    # Of a process on another host it is not known whether it lives.
    shutil.rmtree(tmp_path / "out")
    killed = left_by_a_killed_run(tmp_path / "out", at="another")
    assert killed_run(tmp_path / "out") == killed


def test_a_folder_takes_over_what_was_left_until_results_are_in_place(tmp_path):
    out = tmp_path / "out"
    killed = left_by_a_killed_run(out)
    with pytest.raises(FileExistsError, match="killed"):
        ResultsFolder(out, "cells", overwrite=False)
    with reserve_folder(out, "cells", overwrite=False, killed=killed) as folder:
        assert not killed.exists()
        assert list(folder.new.iterdir()) == []
        assert (folder.checkpoints / "epoch_3").is_dir()
    assert folder.checkpoints.is_dir()  # it failed, and can be continued again
    with reserve_folder(out, "cells", overwrite=False, killed=folder.staging) as folder:
        (folder.new / "scores.csv").write_text("1")
        folder.publish()
    assert sorted(os.listdir(out)) == ["manifest.json", "scores.csv"]


def test_files_that_came_meanwhile_are_kept(tmp_path):
    out = tmp_path / "out"
    killed = left_by_a_killed_run(out)
    (out / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        ResultsFolder(out, "cells", overwrite=False, killed=killed)
    assert (killed / "checkpoints").is_dir()


def test_what_cannot_be_continued_is_one_line(tmp_path):
    out = tmp_path / "out"
    assert "nothing of a fit that was killed" in failed("--resume", str(out))
    killed = left_by_a_killed_run(out)
    content = json.loads((killed / "command.json").read_text())
    for text in ("{", "[]", json.dumps(content | {"arguments": 3})):
        (killed / "command.json").write_text(text)
        assert "command.json is damaged" in failed("--resume", str(out))
    (killed / "command.json").write_text(json.dumps(content | {"version": "99"}))
    assert f"this is {__version__}" in failed("--resume", str(out))
    assert (killed / "checkpoints" / "epoch_3").is_dir()
    shutil.move(killed, out / f".unfinished-{unfinished.socket.gethostname()}-{os.getppid()}-0a1b")
    assert "is still active" in failed("--resume", str(out))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
def test_a_killed_fit_ends_as_one_that_was_not(tmp_path):
    counts = tmp_path / "cells.h5ad"
    adata = simulate(SimulationSettings(n_background=60, n_target=80, n_genes=20), seed=0)
    adata.write_h5ad(counts)
    script = tmp_path / "fit.py"
    script.write_text(FIT)

    def shell(*arguments: str, die_after: int = -1) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), "fit", *arguments, str(die_after)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    what = [str(counts), "--condition-key", "condition", "--background", "control"]
    what += ["--null-shuffles", "0", "--max-epochs", "12", "--embedding", "pca", "--seed", "4"]
    assert shell(*what, "--out", str(tmp_path / "whole")).returncode == 0
    out = tmp_path / "out"
    assert shell(*what, "--out", str(out), die_after=4).returncode == -signal.SIGKILL
    adata.X = adata.X * 2
    adata.write_h5ad(counts)
    done = shell("--resume", str(out))
    assert done.returncode == 1
    assert "The fit cannot be continued" in done.stderr
    assert "total counts" in done.stderr
    adata.X = adata.X / 2
    adata.write_h5ad(counts)
    assert shell("--resume", str(out), die_after=9).returncode == -signal.SIGKILL
    done = shell("--resume", str(out))
    assert done.returncode == 0, done.stderr
    for name in ("latents.csv", "genes.csv", "scores.csv", "model/model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not [name for name in os.listdir(out) if name.startswith(".")]
