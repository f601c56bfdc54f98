"""Remember which cells a model was trained on, so that held-out cells are known afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_contrastive.training.splits import Indices, Split

PARTS = ("train", "validation", "test")
PREFIX = "cells."
"""Prefix of the names of the parts among the tensors of a saved model."""
TOTALS = f"{PREFIX}totals"


@dataclass(frozen=True)
class TrainedCells:
    """Sorted indices of training, validation and test cells, and the data set they belong to.

    Parameters
    ----------
    train, validation, test
        Indices of the cells.
    digest
        Hash of the names of all cells of the data set, in order.
    names, totals
        Those names (``None`` after loading), and the total count of each cell, ``[cells]``. With
        them cells are found again after the data set was subset or reordered; the total
        distinguishes a cell from another that was given its name.
    """

    train: Indices
    validation: Indices
    test: Indices
    digest: str
    names: pd.Index | None = None
    totals: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, split: Split, names: pd.Index, totals: NDArray[np.float64] | None = None) -> Self:
        """Record a split of the data set that has these cell names and total counts."""
        train, validation, test = (
            np.sort(np.concatenate([part.background, part.target]))
            for part in (split.train, split.validation, split.test)
        )
        return cls(train, validation, test, digest_of(names), names, totals)

    def are_of(self, names: pd.Index) -> bool:
        """Return whether the indices refer to a data set with these cell names."""
        return names is self.names or digest_of(names) == self.digest

    def within(self, names: pd.Index, totals: NDArray[np.float64]) -> Self | None:
        """Return the same cells with their indices in the data set in its present form.

        Parameters
        ----------
        names, totals
            Names of the present cells, and the total count of each.

        Returns
        -------
        ``None`` if that is not known: some present cells were not there in training, by name and
        total count, or names repeat.
        """
        if self.are_of(names):
            before = np.arange(len(names))
        elif self.names is None or not (self.names.is_unique and names.is_unique):
            return None
        else:
            before = self.names.get_indexer(names)
        if (before < 0).any():
            return None
        if self.totals is not None and not same_totals(self.totals[before], totals).all():
            return None
        train, validation, test = (
            np.flatnonzero(np.isin(before, part))
            for part in (self.train, self.validation, self.test)
        )
        return type(self)(train, validation, test, digest_of(names), names, totals)

    def trained_among(self, names: pd.Index, totals: NDArray[np.float64]) -> Indices | None:
        """Return which cells of a data set were trained on; others may be new to the model.

        ``None`` if that is not known: cells have the name of one in training but another total
        count, or the names in training are not known, as after loading.
        """
        if self.names is None:
            return None
        if not self.names.is_unique:
            return np.flatnonzero(names.isin(self.names[self.train]))
        before = self.names.get_indexer(names)
        known = np.flatnonzero(before >= 0)
        if self.totals is not None:
            same = same_totals(self.totals[before[known]], totals[known])
            if not same.all():
                return None
        return known[np.isin(before[known], self.train)]

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the indices under the names they are saved by."""
        tensors = {f"{PREFIX}{part}": torch.from_numpy(getattr(self, part)) for part in PARTS}
        if self.totals is not None:
            tensors[TOTALS] = torch.from_numpy(self.totals)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], digest: str | None) -> Self | None:
        """Read what :meth:`to_tensors` returned; ``None`` if the tensors do not include it."""
        names = [f"{PREFIX}{part}" for part in PARTS]
        if digest is None or not all(name in tensors for name in names):
            return None
        train, validation, test = (tensors[name].numpy() for name in names)
        totals = tensors[TOTALS].numpy() if TOTALS in tensors else None  # earlier versions had none
        return cls(train, validation, test, digest, totals=totals)


def same_totals(before: NDArray[np.float64], now: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which cells have the same total as before, ``[cells]``; missing totals differ."""
    # The last digits of sums of non-integers depend on how the data are stored.
    rounding = np.where(now == np.floor(now), 0.0, 1e-5 * np.abs(now))
    return np.asarray(np.abs(before - now) <= rounding)


def digest_of(names: pd.Index) -> str:
    """Return a short text that differs between lists of cell names."""
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()
