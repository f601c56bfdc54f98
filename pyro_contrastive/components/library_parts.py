"""The parts of a model that the library makes when a file names them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

_ROOMS = {
    "Likelihood": "likelihoods",
    "Prior": "priors",
    "ContrastiveGuide": "guides",
    "Penalty": "penalties",
}
PART_KINDS = {
    "likelihood": "Likelihood",
    "background_prior": "Prior",
    "salient_prior": "Prior",
    "library_prior": "Prior",
    "dispersion_prior": "Prior",
    "guide": "ContrastiveGuide",
    "penalties": "Penalty",
}
"""Kind of part that a model takes under each keyword."""


def library_parts() -> dict[str, Mapping[str, type[Any]]]:
    """Return the library's own parts by kind and name: the only ones a file can ask for.

    Each is the fixed ``LIBRARY`` of its folder. (Imported here and not above, because the classes
    in these folders are themselves components.)
    """
    return {
        kind: import_module(f"pyro_contrastive.{room}").LIBRARY for kind, room in _ROOMS.items()
    }
