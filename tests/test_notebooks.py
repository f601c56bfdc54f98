"""The notebooks run, and are committed with what they show."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 4


def faults_of(path: Path) -> list[str]:
    """Look at a notebook as it stands, in a process whose imports warn of nothing here."""
    look = (
        "import json, sys, nbformat; from execute import faults; "
        "print(json.dumps(faults(nbformat.read(sys.argv[1], as_version=4))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", look, path], cwd=FOLDER, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@every_notebook
def test_it_is_committed_with_its_outputs(path) -> None:
    assert faults_of(path) == []
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    shown = [cell for cell in notebook["cells"] if cell.get("outputs")]
    pictures = [o for cell in shown for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert pictures, "a tutorial without a figure"
    first = notebook["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.match(r"# .", "".join(first["source"]))
    assert "pip install" in "".join("".join(cell["source"]) for cell in notebook["cells"][:3])


@pytest.mark.slow
@every_notebook
def test_it_runs(path, tmp_path) -> None:
    command = [sys.executable, str(FOLDER / "execute.py"), path.name, "--to", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / path.name).exists()


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        ({"output_type": "stream", "name": "stdout", "text": "saved in /home/ada/x"}, "/home/a"),
        ({"output_type": "stream", "name": "stderr", "text": "UserWarning: no"}, "UserWarning"),
        (
            {"output_type": "error", "ename": "KeyError", "evalue": "x", "traceback": []},
            "raised KeyError",
        ),
        (None, "no outputs"),
    ],
)
def test_what_does_not_belong_into_a_notebook_is_found(output, fault, tmp_path) -> None:
    cell = {
        "cell_type": "code",
        "id": "a",
        "execution_count": 1,
        "metadata": {},
        "source": "1",
        "outputs": [] if output is None else [output],
    }
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    found = faults_of(tmp_path / "a.ipynb")
    assert len(found) == 1
    assert fault in found[0]


def test_a_notebook_that_raises_is_reported_and_not_saved(tmp_path) -> None:
    cell = {
        "cell_type": "code",
        "id": "a",
        "execution_count": None,
        "metadata": {},
        "source": "raise KeyError('lost')",
        "outputs": [],
    }
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}
    path, to = tmp_path / "a.ipynb", tmp_path / "to"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    to.mkdir()
    command = [sys.executable, str(FOLDER / "execute.py"), str(path), "--to", str(to)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "KeyError: 'lost'" in done.stderr
    assert not list(to.iterdir())
