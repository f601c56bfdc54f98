"""Counts as sparse rows, and a linear layer that multiplies only the non-zero ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from scipy.sparse import csc_matrix, csr_matrix
from torch import Tensor
from torch.autograd.function import Function
from torch.nn.functional import embedding_bag

from pyro_contrastive._tools.operators import define
from pyro_contrastive._tools.torch_tools import tensor_of

PAYS_BELOW = 0.25
"""Share of non-zero counts up to which a sparse product is faster than a dense one."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """A matrix in compressed rows.

    Parameters
    ----------
    indices
        Column of every non-zero entry, row by row.
    offsets
        Start of each row, and end of the last: ``[rows + 1]``.
    values
        The entries.
    """

    indices: Tensor
    offsets: Tensor
    values: Tensor

    @classmethod
    def of(
        cls, matrix: csr_matrix | csc_matrix, device: torch.device | str, dtype: torch.dtype
    ) -> Self:
        """Copy a SciPy matrix; indices keep their type there, mostly 32-bit integers."""
        return cls(
            tensor_of(matrix.indices).to(device),
            tensor_of(matrix.indptr).to(device),
            tensor_of(matrix.data).to(device, dtype),
        )

    def rows(self) -> Tensor:
        """Row of every entry."""
        return self.rows_of(len(self.indices))

    def rows_of(self, n_entries: int) -> Tensor:
        """Row of every entry; their number is given, so that a GPU need not be waited for."""
        rows = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return rows.repeat_interleave(self.offsets.diff(), output_size=n_entries)

    def positions(self) -> tuple[Tensor, Tensor]:
        """Row and column of every entry, as 64-bit integers."""
        return self.rows(), self.indices.long()

    def transposed(self, n_columns: int) -> Self:
        """Return the same matrix by columns."""
        arrays = (self.indices, self.offsets, self.values)
        return type(self)(*torch.ops.pyro_contrastive.transpose_rows(*arrays, n_columns))

    def transposed_by_counting(self, n_columns: int) -> Self:
        """Return the same for a matrix in the host's memory, where SciPy is faster."""
        arrays = (self.values.numpy(), self.indices.numpy(), self.offsets.numpy())
        matrix = csr_matrix(arrays, shape=(len(self.offsets) - 1, n_columns)).tocsc()
        return type(self).of(matrix, "cpu", self.values.dtype)

    def transposed_by_sorting(self, n_columns: int) -> Self:
        """Return the same, on any device."""
        order = self.indices.argsort(stable=True)
        ends = self.indices.bincount(minlength=n_columns).cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends])
        return type(self)(self.rows()[order], offsets, self.values[order])

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


def _transpose_rows(
    indices: Tensor, offsets: Tensor, values: Tensor, n_columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows, on_host = Compressed(indices, offsets, values), indices.device.type == "cpu"
    found = rows.transposed_by_counting if on_host else rows.transposed_by_sorting
    columns = found(n_columns)
    return columns.indices, columns.offsets, columns.values


# An operator of torch, because a recorded step consists of those only.
define(
    "transpose_rows(Tensor indices, Tensor offsets, Tensor values, int n_columns)"
    " -> (Tensor, Tensor, Tensor)",
    _transpose_rows,
)


@dataclass(frozen=True)
class SparseRows:
    """The counts of some cells, and their transpose, made when a gradient first needs it.

    Parameters
    ----------
    cells_by_genes
        The entries, cell by cell.
    n_genes
        Number of genes.
    """

    cells_by_genes: Compressed
    n_genes: int

    @classmethod
    def of(cls, counts: csr_matrix, device: torch.device | str, dtype: torch.dtype) -> Self | None:
        """Copy SciPy's CSR counts; ``None`` if too few are zero for this to be faster."""
        if counts.nnz > PAYS_BELOW * counts.shape[0] * counts.shape[1]:
            return None
        return cls(Compressed.of(counts, device, dtype), counts.shape[1])

    @cached_property
    def genes_by_cells(self) -> Compressed:
        """The same entries, gene by gene."""
        return self.cells_by_genes.transposed(self.n_genes)

    def to(self, device: torch.device | str) -> Self:
        """Copy to `device`."""
        return type(self)(self.cells_by_genes.to(device), self.n_genes)

    def log1p(self) -> Self:
        """Take log(1 + .) of every count: 0 stays 0."""
        return self.with_values(torch.log1p(self.cells_by_genes.values))

    def with_values(self, values: Tensor) -> Self:
        """Return other values at the same places."""
        return type(self)(replace(self.cells_by_genes, values=values), self.n_genes)

    def linear(self, weight: Tensor) -> Tensor:
        """Multiply with the transposed `weight`, ``[width, genes]``: ``[cells, width]``."""
        product: Tensor = _SparseLinear.apply(self, weight)  # type: ignore[no-untyped-call]
        return product


class _SparseLinear(Function):
    @staticmethod
    def forward(ctx: Any, rows: SparseRows, weight: Tensor) -> Tensor:
        ctx.rows = rows
        # Detached: torch would otherwise prepare a gradient of its own, at a third more time.
        return rows.cells_by_genes.times(weight.detach().t().contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, ctx.rows.genes_by_cells.times(grad.contiguous()).t()
