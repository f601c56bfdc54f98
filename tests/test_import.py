"""What importing the library loads, and what it leaves for when it is used."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources

import pytest

HEAVY = (
    "arviz",
    "jinja2",
    "lightning_fabric",
    "matplotlib",
    "numba",
    "rich.console",
    "scanpy",
    "scvi",
    "sklearn",
    "typer",
)


@pytest.mark.slow
def test_importing_leaves_what_is_heavy_for_when_it_is_used() -> None:
    lines = ["import sys, torch, pyro, anndata", "before = set(sys.modules)"]
    lines += ["import pyro_contrastive", "print(*(set(sys.modules) - before))"]
    run = [sys.executable, "-c", "\n".join(lines)]
    loaded = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
    assert "pyro_contrastive.model" in loaded
    assert not [name for name in HEAVY if name in loaded]


def test_its_types_are_for_users_too() -> None:
    assert resources.files("pyro_contrastive").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", ["ContrastiveVI", "presets", "ZeroInflatedNegativeBinomial"])
def test_public_names_are_there(name) -> None:
    import pyro_contrastive

    assert getattr(pyro_contrastive, name)
