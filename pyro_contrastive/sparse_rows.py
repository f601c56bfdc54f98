"""Counts as sparse rows, and a linear layer that multiplies by the non-zero ones only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.autograd.function import Function
from torch.nn.functional import embedding_bag

PAYS_BELOW = 0.25
"""Share of non-zero counts up to which the sparse product is the faster one."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """A matrix in compressed rows.

    Parameters
    ----------
    indices
        Column of every non-zero entry, row by row.
    offsets
        Where each row begins, and the end: ``[rows + 1]``.
    values
        The entries.
    """

    indices: Tensor
    offsets: Tensor
    values: Tensor

    @classmethod
    def of(cls, matrix: csr_matrix, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Copy a SciPy matrix."""
        return cls(
            torch.as_tensor(matrix.indices.astype(np.int64), device=device),
            torch.as_tensor(matrix.indptr.astype(np.int64), device=device),
            torch.as_tensor(matrix.data, device=device, dtype=dtype),
        )

    def rows(self) -> Tensor:
        """Row of every entry."""
        starts = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return starts.repeat_interleave(self.offsets.diff())

    def to(self, device: torch.device | str) -> Self:
        """Copy to `device`."""
        return type(self)(*(a.to(device) for a in (self.indices, self.offsets, self.values)))

    def times(self, dense: Tensor) -> Tensor:
        """Multiply from the left with ``[columns, width]``: ``[rows, width]``."""
        return embedding_bag(
            self.indices,
            dense,
            self.offsets,
            mode="sum",
            per_sample_weights=self.values,
            include_last_offset=True,
        )


@dataclass(frozen=True, slots=True)
class SparseRows:
    """The counts of some cells, and their transpose, which the gradient needs.

    Parameters
    ----------
    cells_by_genes, genes_by_cells
        The same entries, compressed either way.
    """

    cells_by_genes: Compressed
    genes_by_cells: Compressed

    @classmethod
    def of(cls, counts: csr_matrix, device: torch.device | str, dtype: torch.dtype) -> Self | None:
        """Copy SciPy's CSR counts; ``None`` if they are not sparse enough for it to pay."""
        if counts.nnz > PAYS_BELOW * counts.shape[0] * counts.shape[1]:
            return None
        transposed = csr_matrix(counts.T)
        return cls(Compressed.of(counts, device, dtype), Compressed.of(transposed, device, dtype))

    def to(self, device: torch.device | str) -> Self:
        """Copy to `device`."""
        return type(self)(self.cells_by_genes.to(device), self.genes_by_cells.to(device))

    def log1p(self) -> Self:
        """Take log(1 + .) of every count: 0 stays 0."""
        both = (self.cells_by_genes, self.genes_by_cells)
        return type(self)(*(Compressed(a.indices, a.offsets, torch.log1p(a.values)) for a in both))

    def linear(self, weight: Tensor) -> Tensor:
        """Multiply with the transposed `weight`, ``[width, genes]``: ``[cells, width]``."""
        product: Tensor = _SparseLinear.apply(self, weight)  # type: ignore[no-untyped-call]
        return product


class _SparseLinear(Function):
    @staticmethod
    def forward(ctx: Any, rows: SparseRows, weight: Tensor) -> Tensor:
        ctx.rows = rows
        return rows.cells_by_genes.times(weight.t().contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, ctx.rows.genes_by_cells.times(grad.contiguous()).t()
