"""The one data type that flows through model, guide and objective: a batch of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from pyro_contrastive.observed.sparse_rows import SparseRows

BACKGROUND = 0
"""The condition code of background (control) cells; treatments are 1, 2, ..., K."""
TENSORS = ("condition", "x", "batch", "categorical", "continuous", "library")


@dataclass(frozen=True, slots=True)
class CellBatch:
    """Counts of some cells and what is known about each of them.

    Parameters
    ----------
    condition
        Integer per cell, shape ``[cells]``: 0 = background, 1..K = treatments (target cells).
    x
        Counts, shape ``[cells, genes]``; ``None`` when the counts are to be drawn, not observed.
    batch
        Integer batch code per cell, shape ``[cells]``. Default: every cell in batch 0.
    categorical
        Codes of further categorical covariates, shape ``[cells, covariates]``.
    continuous
        Continuous covariates, shape ``[cells, covariates]``.
    library
        Observed library size (total counts, or a size factor on that scale), shape ``[cells, 1]``,
        natural scale. Default: the row sums of `x`. Only used when the library size is observed.
    rows
        The counts once more, as sparse rows: the encoders are faster by them. It is up to whoever
        gives them that they agree with `x`; they are optional.

    Raises
    ------
    ValueError
        If the shapes disagree about the number of cells, naming the field that does.

    Examples
    --------
    >>> import torch
    >>> cells = CellBatch(condition=torch.tensor([0, 1]), x=torch.tensor([[1.0, 2.0], [0.0, 4.0]]))
    >>> len(cells), cells.library.squeeze(-1).tolist(), cells.is_target.tolist()
    (2, [3.0, 4.0], [False, True])
    """

    condition: Tensor
    x: Tensor | None = None
    batch: Tensor | None = None
    categorical: Tensor | None = None
    continuous: Tensor | None = None
    library: Tensor | None = None
    rows: SparseRows | None = None

    def __post_init__(self) -> None:
        """Fill in what follows from the rest, and check that the fields agree."""
        n_cells = self.condition.shape[0]
        if self.batch is None:
            object.__setattr__(self, "batch", torch.zeros_like(self.condition))
        if self.library is None and self.x is not None:
            object.__setattr__(self, "library", self.x.sum(-1, keepdim=True))
        for name in TENSORS:
            n_dim = 1 if name in {"condition", "batch"} else 2
            value = getattr(self, name)
            if value is not None and (value.ndim != n_dim or value.shape[0] != n_cells):
                expected = "[cells]" if n_dim == 1 else "[cells, .]"
                msg = (
                    f"CellBatch: `{name}` has shape {list(value.shape)}; expected {expected} "
                    f"with {n_cells} cells, as many as `condition` has."
                )
                raise ValueError(msg)

    def __len__(self) -> int:
        return self.condition.shape[0]

    @property
    def is_target(self) -> Tensor:
        """Boolean per cell, shape ``[cells]``: does the cell belong to any treatment."""
        return self.condition != BACKGROUND

    @property
    def batch_codes(self) -> Tensor:
        """Batch code per cell, shape ``[cells]`` (never ``None``)."""
        if self.batch is None:  # pragma: no cover - __post_init__ fills it
            msg = "CellBatch lost its batch codes."
            raise ValueError(msg)
        return self.batch

    def observed_library(self) -> Tensor:
        """Observed library size, shape ``[cells, 1]``.

        Raises
        ------
        ValueError
            If the batch has neither counts nor library sizes.
        """
        if self.library is None:
            msg = (
                "The library size is observed in this model, but these cells carry neither counts "
                "nor a library size: pass `library=` (total counts per cell, shape [cells, 1])."
            )
            raise ValueError(msg)
        return self.library

    def to(self, device: torch.device | str) -> Self:
        """Copy every tensor to `device` (no copy where it already is there)."""
        moved: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: v if v is None else v.to(device) for name, v in moved.items()}
        return type(self)(**moved)

    def take(self, chosen: Tensor) -> Self:
        """Return some of the cells, without `rows`: `chosen` holds positions, or is a mask."""
        taken: dict[str, Any] = {}
        for name in TENSORS:
            value = getattr(self, name)
            taken[name] = None if value is None else value[chosen]
        return type(self)(**taken)

    @classmethod
    def cat(cls, batches: Sequence[CellBatch]) -> CellBatch:
        """Join batches of cells, in the order given.

        Raises
        ------
        ValueError
            If a field is present in some of them and missing in others.
        """
        joined: dict[str, Any] = {}
        for name in TENSORS:
            parts = [getattr(b, name) for b in batches]
            present = [p for p in parts if p is not None]
            if present and len(present) != len(parts):
                msg = f"CellBatch.cat: `{name}` is missing in some of the batches to be joined."
                raise ValueError(msg)
            joined[name] = torch.cat(present) if present else None
        return cls(**joined)
