"""Refined posteriors in the files of a saved model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from pyro_contrastive._tools.invalid_file import InvalidFileError

PREFIX = "refined."
"""Prefix of the names of their tensors among those of a saved model."""
ENTRIES: dict[str, type] = {
    "digest": str,
    "weights": str,
    "n_steps": int,
    "n_pairs": int,
    "widths": dict,
    "positive": list,
}
"""What is written about them in the configuration, with the types in JSON."""


@dataclass(frozen=True)
class SavedPosteriors:
    """Refined posteriors of some cells, as they are written.

    Parameters
    ----------
    entries
        :data:`ENTRIES`: hashes of the names of the cells and of the weights, the settings of the
        refinement, the width of each site, and the sites whose latents are positive.
    tensors
        ``cells`` (positions), ``totals``, ``is_refined`` and ``failed``, each ``[cells]``;
        ``mean``, ``[cells, latents]``; ``factor``, the lower triangle of the factor of each
        covariance, row by row, ``[cells, latents * (latents + 1) / 2]``.
    """

    entries: dict[str, Any]
    tensors: dict[str, Tensor]

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the tensors under the names they are saved by."""
        return {f"{PREFIX}{name}": value for name, value in self.tensors.items()}

    @classmethod
    def read(cls, entries: object, tensors: Mapping[str, Tensor]) -> Self | None:
        """Read what was written; ``None`` if nothing was.

        Raises
        ------
        InvalidFileError
            If entries or tensors are not what is written.
        """
        found = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
        if entries is None:
            return None
        if not isinstance(entries, dict) or {k: type(v) for k, v in entries.items()} != ENTRIES:
            msg = f"'refined' is not a table of {', '.join(ENTRIES)}"
            raise InvalidFileError(msg)
        widths = entries["widths"].values()
        if not all(type(width) is int and width > 0 for width in widths):
            msg = "'refined': 'widths' are not numbers of latents"
            raise InvalidFileError(msg)
        n_cells, n = len(found["cells"]), sum(widths)
        shapes = {
            "cells": ((n_cells,), torch.int64),
            "totals": ((n_cells,), torch.float64),
            "is_refined": ((n_cells,), torch.bool),
            "failed": ((n_cells,), torch.bool),
            "mean": ((n_cells, n), found["mean"].dtype),
            "factor": ((n_cells, n * (n + 1) // 2), found["mean"].dtype),
        }
        if {k: (tuple(v.shape), v.dtype) for k, v in found.items()} != shapes:
            msg = "'refined': the tensors do not have the shapes that belong together"
            raise InvalidFileError(msg)
        return cls(dict(entries), found)
