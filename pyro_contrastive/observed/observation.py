"""The observations of some cells, as tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from pyro_contrastive.observed.matrix import Matrix, row_sums
from pyro_contrastive.observed.sparse_rows import Compressed, SparseRows

T = TypeVar("T")
OF_VARYING_SIZE = ("row_indices", "row_values")
"""Tensors of an observation whose length is the number of non-zero values."""


class SparseValues(Tensor):
    """A dense tensor ``[cells, features]`` that knows where it is not zero.

    A model observes it like any other tensor. The densities of the library ask it where the
    non-zero entries are (see ``density.nonzero``); otherwise it is an ordinary tensor, and so are
    its copies and the results of operations on it.
    """

    # No overrides: as for torch's own Parameter, operations return plain tensors and cost no more.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _entries: Compressed
    _version_at_first: int
    _results: dict[Callable[..., Any], Any]

    @classmethod
    def of(cls, values: Tensor, entries: Compressed) -> Self:
        """Return a tensor on the memory of `values`, whose non-zero entries are `entries`."""
        made = values.as_subclass(cls)
        made._entries, made._version_at_first, made._results = entries, made._version, {}
        return made

    @property
    def is_unchanged(self) -> bool:
        """Whether the values are still those it was made with, not changed in place."""
        return self._version == self._version_at_first

    def positions(self) -> tuple[Tensor, Tensor]:
        """Row and column of every non-zero entry, as 64-bit integers."""
        return self._entries.positions()

    def once(self, function: Callable[[Self], T]) -> T:
        """Return the function of this tensor, evaluated the first time only."""
        if function not in self._results:
            self._results[function] = function(self)
        result: T = self._results[function]
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copy the values into an ordinary tensor."""
        return copy.deepcopy(self.as_subclass(Tensor), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the values as an ordinary tensor."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Observation:
    """The observations of some cells in one modality.

    Parameters
    ----------
    values
        ``[cells, features]``; ``None`` when nothing is observed, or only `rows` are given.
    rows
        The same as sparse rows, with which encoders are faster; optional.
    totals
        Sum of each cell's values, ``[cells, 1]``; needed only where `values` are missing.
    """

    values: Tensor | None = None
    rows: SparseRows | None = None
    totals: Tensor | None = None

    @classmethod
    def of(
        cls, matrix: Matrix, device: torch.device | str, dtype: torch.dtype, *, dense: bool = True
    ) -> Self:
        """Copy the rows of a matrix to `device`.

        With ``dense=False``, and a matrix sparse enough for this to be faster, `values` are
        ``None``. On a GPU the cells come either dense or as sparse rows, never both: a product with
        all values costs it little, and the number of non-zero ones would vary from step to step.
        """
        if not isinstance(matrix, np.ndarray) and matrix.format != "csr":
            matrix = matrix.tocsr()  # by columns, the entries would be those of other cells
        rows = None
        on_host = torch.device(device).type == "cpu"
        if not isinstance(matrix, np.ndarray) and (not dense or on_host):
            rows = SparseRows.of(matrix, device, dtype)
        if rows is not None and not dense:
            totals = torch.as_tensor(row_sums(matrix), device=device, dtype=dtype)
            return cls(None, rows, totals.unsqueeze(-1))
        whole = matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
        values = torch.as_tensor(whole, device=device, dtype=dtype)
        if rows is not None:
            values = SparseValues.of(values, rows.cells_by_genes)
        return cls(values, rows)

    def row_totals(self) -> Tensor | None:
        """Sum of each cell's values, ``[cells, 1]``; ``None`` if nothing is observed."""
        if self.totals is not None or self.values is None:
            return self.totals
        return self.values.sum(-1, keepdim=True)

    def to(self, device: torch.device | str) -> Self:
        """Copy every tensor to `device` (no copy where it already is there)."""
        parts: Iterable[Any] = (self.values, self.rows, self.totals)
        return type(self)(*(None if part is None else part.to(device) for part in parts))

    def take(self, chosen: Tensor) -> Self:
        """Return some of the cells, without sparse rows: `chosen` holds positions, or is a mask."""
        values, totals = (None if t is None else t[chosen] for t in (self.values, self.totals))
        return type(self)(values, None, totals)

    def tensors(self) -> Mapping[str, Tensor]:
        """Return every tensor of the observation, each under its own name."""
        found = {"values": self.values, "totals": self.totals}
        if self.rows is not None:
            entries = self.rows.cells_by_genes
            found |= {"row_indices": entries.indices, "row_offsets": entries.offsets}
            found |= {"row_values": entries.values}
        return {name: tensor for name, tensor in found.items() if tensor is not None}
