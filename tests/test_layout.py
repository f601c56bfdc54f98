"""Imports point one way, and the lower rooms know nothing of AnnData."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyro_contrastive

PACKAGE = Path(pyro_contrastive.__file__).parent
# From the bottom up, as in ARCHITECTURE.md: a module imports from its own line and those above it.
ROOMS = (
    ("_tools",),
    ("observed", "cells"),
    ("density", "components"),
    ("likelihoods", "priors", "penalties", "networks"),
    ("model", "guide", "outline", "guides"),
    ("sites", "objective"),
    ("components.parts",),
    ("interop.module",),
    ("vae",),
    ("presets", "data"),
    ("training",),
    ("saving",),
    ("analysis",),
    ("methods", "interop"),
    ("contrastive_vi",),
    ("plotting", "testing"),
    ("report",),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
# Nothing up to the module that holds model and guide reads files or tables.
LAST_WITHOUT_ANNDATA = RANK["vae"]


def modules() -> list[str]:
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    names = (".".join(path.parts).removesuffix(".__init__") for path in paths)
    return sorted(name for name in names if name != "__init__")


def rank_of(module: str) -> int:
    rooms = [room for room in RANK if module == room or module.startswith(f"{room}.")]
    return RANK[max(rooms, key=len)]


def imports_of(module: str) -> Iterator[str]:
    """Modules that are imported anywhere in a module, but for annotations alone."""
    path = PACKAGE / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and getattr(branch.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module):
    known = set(modules())
    for imported in imports_of(module):
        name = imported.removeprefix("pyro_contrastive.")
        while name and name not in known:
            name = name.rpartition(".")[0]
        if imported.startswith("pyro_contrastive.") and name:
            assert rank_of(name) <= rank_of(module), f"{module} imports {name}"
        if rank_of(module) <= LAST_WITHOUT_ANNDATA:
            assert imported.split(".")[0] not in {"anndata", "pandas"}, f"{module}: {imported}"


def test_every_room_exists():
    known = modules()
    for room in RANK:
        assert any(module == room or module.startswith(f"{room}.") for module in known), room
