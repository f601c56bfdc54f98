"""Conditions, batches and covariates seen in training, so that a model can draw similar cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyro_contrastive.cells import CellBatch

N_REMEMBERED = 1000
"""Number of cells remembered: enough to draw from, and few enough to save with every model."""
FIELDS = ("condition", "batch", "library", "categorical", "continuous")


def evenly(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose at most :data:`N_REMEMBERED` of these cells, evenly spaced, without random numbers."""
    places = np.linspace(0, len(cells) - 1, min(len(cells), N_REMEMBERED))
    return cells[places.astype(np.int64)]


class SeenCells(nn.Module):
    """Condition, batch, library size and covariates of some of the cells that trained.

    They are buffers, so that they are saved with the weights. There are none before training, and
    none in models saved by earlier versions.
    """

    condition: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        for name in FIELDS:
            self.register_buffer(name, None)

    def note(self, cells: CellBatch) -> None:
        """Remember these cells instead of earlier ones."""
        for name in FIELDS:
            value = getattr(cells, name)
            setattr(self, name, None if value is None else value.detach().clone())

    def fill_in(self, asked: Mapping[str, Tensor | None], n_cells: int) -> dict[str, Tensor | None]:
        """Fill in what was not given from cells that trained.

        Each new cell takes all missing values from one cell drawn at random, of the batch and the
        condition that were given, as far as there are such cells.

        Parameters
        ----------
        asked
            Any of :data:`FIELDS`, ``[n_cells]`` or ``[n_cells, .]`` as in a
            :class:`~pyro_contrastive.CellBatch`; ``None`` for what should be filled in.
        n_cells
            Number of new cells.

        Returns
        -------
        The same fields; still ``None`` where no cells are remembered, or that field of theirs is
        unknown.
        """
        known = dict(self.named_buffers())
        wanted = [name for name in asked if asked[name] is None and name in known]
        if not wanted:
            return dict(asked)
        rows = self._draw(asked, n_cells)
        return dict(asked) | {name: known[name][rows] for name in wanted}

    def _draw(self, asked: Mapping[str, Tensor | None], n_cells: int) -> Tensor:
        """Draw a remembered cell for each new one, ``[n_cells]``."""
        known = dict(self.named_buffers())
        codes = {name: asked.get(name) for name in ("batch", "condition")}
        given = {name: code.to(known[name]) for name, code in codes.items() if code is not None}
        alike = torch.arange(len(known["condition"]), device=known["condition"].device)
        if not given:
            return alike[torch.randint(len(alike), (n_cells,), device=alike.device)]
        rows = alike.new_empty(n_cells)
        kinds, kind_of = torch.stack(list(given.values()), dim=1).unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
        for i, kind in enumerate(kinds):
            found, cells = alike, kind_of == i
            for name, code in zip(given, kind, strict=True):
                matching = found[known[name][found] == code]
                found = matching if len(matching) else found
            rows[cells] = found[torch.randint(len(found), (int(cells.sum()),), device=alike.device)]
        return rows

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        *report: list[str],
    ) -> None:
        """Allocate buffers for as many cells as were saved, or remove them if none were."""
        sizes = {len(state_dict[prefix + n]) for n in FIELDS if prefix + n in state_dict}
        if len(sizes) > 1 or (sizes and f"{prefix}condition" not in state_dict):
            report[-1].append(f"{prefix.rstrip('.')} is incomplete, or of {sorted(sizes)} cells")
            return
        for name in FIELDS:
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, torch.empty_like(saved))
            elif strict:
                setattr(self, name, None)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *report)
