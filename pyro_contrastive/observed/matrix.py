"""Matrices in the host's memory, sparse or dense."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Matrix: TypeAlias = sp.csr_matrix | NDArray[np.float32]
"""``[cells, features]``: rows in compressed form (CSR), or dense."""


def row_sums(matrix: Matrix) -> NDArray[np.float64]:
    """Total of each row, shape ``[cells]``."""
    return np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()


def stored_values(matrix: Matrix) -> NDArray[np.float32]:
    """Return the values of a dense matrix, ``[cells, features]``, or the stored ones of a CSR."""
    return matrix if isinstance(matrix, np.ndarray) else matrix.data
