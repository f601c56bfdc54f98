"""How a model was set up, as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pyro_contrastive.data.setup import Setup

FOUND_IN_DATA = ("categories", "genes", "size_factor_unit")
"""Fields of a setup that were found in the data, not given to ``setup_anndata``."""


def setup_arguments(setup: Setup) -> dict[str, Any]:
    """Return the arguments that ``setup_anndata`` was given."""
    return {name: value for name, value in asdict(setup).items() if name not in FOUND_IN_DATA}


def print_arguments(setup: Setup) -> None:
    """Print the arguments that ``setup_anndata`` was given."""
    _print_table("setup_anndata", ("argument", "value"), setup_arguments(setup))


def print_levels(setup: Setup) -> None:
    """Print the levels of every column, and their codes."""
    codes = {
        f"{key}: {level}": str(code)
        for key, levels in setup.categories.items()
        for code, level in enumerate(levels)
    }
    _print_table(f"{len(setup.genes)} genes", ("level", "code"), codes)


def _print_table(title: str, header: tuple[str, str], rows: Mapping[str, Any]) -> None:
    # rich is slow to import, and importing the package must be quick.
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(*header, title=title)
    for name, value in rows.items():
        table.add_row(escape(name), escape(str(value)))
    Console().print(table)
