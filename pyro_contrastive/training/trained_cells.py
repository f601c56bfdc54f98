"""Which cells a model was trained on, so that held-out cells stay known after saving."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_contrastive.training.splits import Indices, Split

PARTS = ("train", "validation", "test")
PREFIX = "cells."
"""Before the names of the parts, among the tensors of a saved model."""


@dataclass(frozen=True)
class TrainedCells:
    """Sorted indices of training, validation and test cells, and of which data set they are.

    Parameters
    ----------
    train, validation, test
        Indices of the cells.
    digest
        Of the names of all cells of the data set, in their order.
    """

    train: Indices
    validation: Indices
    test: Indices
    digest: str

    @classmethod
    def of(cls, split: Split, names: pd.Index) -> Self:
        """Note the cells of a split of the data set that has these cell names."""
        train, validation, test = (
            np.sort(np.concatenate([part.background, part.target]))
            for part in (split.train, split.validation, split.test)
        )
        return cls(train, validation, test, digest_of(names))

    def are_of(self, names: pd.Index) -> bool:
        """Tell whether the indices are those of cells with these names."""
        return digest_of(names) == self.digest

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the indices under the names they are saved with."""
        return {f"{PREFIX}{part}": torch.from_numpy(getattr(self, part)) for part in PARTS}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], digest: str | None) -> Self | None:
        """Read what :meth:`to_tensors` returned; ``None`` if it is not among the tensors."""
        names = [f"{PREFIX}{part}" for part in PARTS]
        if digest is None or not all(name in tensors for name in names):
            return None
        train, validation, test = (tensors[name].numpy() for name in names)
        return cls(train, validation, test, digest)


def digest_of(names: pd.Index) -> str:
    """Return a short text that differs between lists of cell names."""
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()
