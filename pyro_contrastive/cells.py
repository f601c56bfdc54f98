"""The one data type that flows through model, guide and objective: a batch of cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from pyro_contrastive.observed.observation import Observation
from pyro_contrastive.observed.sparse_rows import SparseRows

BACKGROUND = 0
"""The condition code of background (control) cells; treatments are 1, 2, ..., K."""
X = "x"
"""Name of the first modality, and of the site where it is observed: the counts of genes."""
NOTHING = Observation()


class _FromObserved:
    """Default of arguments whose value is in `observed`: `None` says that there is nothing."""

    def __repr__(self) -> str:
        return "<as in `observed`>"


_FROM_OBSERVED: Any = _FromObserved()


def _as_observation(given: Observation | Tensor) -> Observation:
    return given if isinstance(given, Observation) else Observation(given)


@dataclass(frozen=True, init=False)
class CellBatch:
    """Some cells: their observed data, conditions, batches and covariates.

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
        The same counts as sparse rows, which make the encoders faster. Optional; the caller must
        make sure that they agree with `x`.
    observed
        Observations of each modality by the name of its site: an `Observation`, or a tensor
        ``[cells, features]``. `x` and `rows` are those of the site ``"x"``, and need not be given
        again.

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
    batch: Tensor
    categorical: Tensor | None
    continuous: Tensor | None
    library: Tensor | None
    observed: Mapping[str, Observation]

    def __init__(
        self,
        condition: Tensor,
        x: Tensor | None = _FROM_OBSERVED,
        batch: Tensor | None = None,
        categorical: Tensor | None = None,
        continuous: Tensor | None = None,
        library: Tensor | None = None,
        rows: SparseRows | None = _FROM_OBSERVED,
        observed: Mapping[str, Observation | Tensor] | None = None,
    ) -> None:
        seen = {site: _as_observation(given) for site, given in (observed or {}).items()}
        seen = {X: NOTHING} | seen
        given = {"values": x, "rows": rows}
        changes: dict[str, Any] = {k: v for k, v in given.items() if v is not _FROM_OBSERVED}
        if changes:
            seen[X] = replace(seen[X], totals=None, **changes)
        filled: dict[str, Any] = {
            "condition": condition,
            "batch": torch.zeros_like(condition) if batch is None else batch,
            "categorical": categorical,
            "continuous": continuous,
            "library": seen[X].row_totals() if library is None else library,
            "observed": seen,
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        self._check_shapes()

    def _check_shapes(self) -> None:
        n_cells = len(self)
        observed = {site: seen.values for site, seen in self.observed.items()}
        for name, value in (observed | self._own_tensors()).items():
            n_dim = 1 if name in {"condition", "batch"} else 2
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
    def x(self) -> Tensor | None:
        """Counts, ``[cells, genes]``; ``None`` if they are not observed, or sparse rows only."""
        return self.observed[X].values

    @property
    def rows(self) -> SparseRows | None:
        """The counts as sparse rows, if there are any."""
        return self.observed[X].rows

    def observing(self, x: Tensor | None) -> Self:
        """Return the same cells, of the same library size, with other counts (``None``: none)."""
        return replace(self, observed=dict(self.observed) | {X: Observation(x)})

    @property
    def is_target(self) -> Tensor:
        """Boolean per cell, shape ``[cells]``: whether the cell belongs to a treatment."""
        return self.condition != BACKGROUND

    @property
    def batch_codes(self) -> Tensor:
        """Batch code per cell, shape ``[cells]``."""
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

    def _own_tensors(self) -> dict[str, Tensor | None]:
        """Return what is known about each cell besides its observations."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "observed"}

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the batch once, each under its own name."""
        found = {name: value for name, value in self._own_tensors().items() if value is not None}
        for site, seen in self.observed.items():
            known = {id(tensor) for tensor in found.values()}
            parts = {f"{site}.{name}": tensor for name, tensor in seen.tensors().items()}
            found |= {name: tensor for name, tensor in parts.items() if id(tensor) not in known}
        return found

    def to(self, device: torch.device | str) -> Self:
        """Copy every tensor to `device` (no copy where it already is there)."""
        moved: dict[str, Any] = {
            name: None if value is None else value.to(device)
            for name, value in self._own_tensors().items()
        }
        observed = {site: seen.to(device) for site, seen in self.observed.items()}
        return type(self)(**moved, observed=observed)

    def take(self, chosen: Tensor) -> Self:
        """Return some of the cells, without `rows`: `chosen` holds positions, or is a mask."""
        taken: dict[str, Any] = {
            name: None if value is None else value[chosen]
            for name, value in self._own_tensors().items()
        }
        observed = {site: seen.take(chosen) for site, seen in self.observed.items()}
        return type(self)(**taken, observed=observed)

    @classmethod
    def cat(cls, batches: Iterable[CellBatch]) -> CellBatch:
        """Join batches of cells, in the order given, without `rows`.

        Raises
        ------
        ValueError
            If a field or a modality is present in some of them and missing in others.
        """
        batches = list(batches)
        sites = [set(batch.observed) for batch in batches]
        if any(found != sites[0] for found in sites):
            missing = sorted({site for found in sites for site in found ^ sites[0]})
            msg = f"CellBatch.cat: {missing} are not observed in all batches to be joined."
            raise ValueError(msg)

        def join(name: str, parts: Sequence[Tensor | None]) -> Tensor | None:
            present = [p for p in parts if p is not None]
            if present and len(present) != len(parts):
                msg = f"CellBatch.cat: `{name}` is missing in some of the batches to be joined."
                raise ValueError(msg)
            return torch.cat(present) if present else None

        first = batches[0]
        observed = {
            site: Observation(join(site, [b.observed[site].values for b in batches]))
            for site in first.observed
        }
        joined: dict[str, Any] = {
            name: join(name, [getattr(b, name) for b in batches]) for name in first._own_tensors()
        }
        return cls(**joined, observed=observed)
