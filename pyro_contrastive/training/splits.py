"""Split cells into training and held-out ones, and put them in mini-batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive.data.indices import as_indices

Indices = NDArray[np.int64]
Step: TypeAlias = "list[tuple[Indices, Indices]]"
"""Cells of the larger and of the smaller population for each of the processes."""
ROUNDING = 1e-6
"""Tolerance for rounding: 0.55 of 100 cells are 55, although ``0.55 * 100 > 55``."""


@dataclass(frozen=True)
class Population:
    """Indices of the background cells and of the target cells of one part of the data."""

    background: Indices
    target: Indices

    def __len__(self) -> int:
        return len(self.background) + len(self.target)


@dataclass(frozen=True)
class Split:
    """Training, validation and test cells."""

    train: Population
    validation: Population
    test: Population


@dataclass(frozen=True)
class SplitSettings:
    """How to split the cells: at random, or as given.

    Parameters
    ----------
    train_size, validation_size, shuffle
        See :func:`split_populations`.
    datasplitter_kwargs
        Empty, or ``{"external_indexing": [train, validation, test]}``: the split itself, as indices
        or masks of cells; the latter two may be left out, or ``None``.
    """

    train_size: float | None = None
    validation_size: float | None = None
    shuffle: bool = True
    datasplitter_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def external_parts(self, names: pd.Index) -> list[Indices] | None:
        """Return the indices of the parts given, or ``None`` if the split is to be random.

        Raises
        ------
        TypeError
            If `datasplitter_kwargs` has anything else, or its parts are not a list.
        ValueError
            If fractions are given as well, or indices are not those of cells.
        """
        unknown = sorted(set(self.datasplitter_kwargs) - {"external_indexing"})
        if unknown:
            msg = f"datasplitter_kwargs takes only external_indexing, not {unknown}."
            raise TypeError(msg)
        if not self.datasplitter_kwargs:
            return None
        if self.train_size is not None or self.validation_size is not None:
            msg = "external_indexing is the split itself; leave out train_size and validation_size."
            raise ValueError(msg)
        given = self.datasplitter_kwargs["external_indexing"]
        if not isinstance(given, Sequence):
            msg = (
                "external_indexing must be a list of training, validation and test cells, not a "
                f"{type(given).__name__}."
            )
            raise TypeError(msg)
        return [
            as_indices([] if part is None else part, names, f"external_indexing[{i}]")
            for i, part in enumerate(given)
        ]


def split_cells(
    background: Indices,
    target: Indices,
    settings: SplitSettings,
    names: pd.Index,
    rng: np.random.Generator,
) -> Split:
    """Split both populations, at random or as given.

    Parameters
    ----------
    background, target
        Indices of the cells.
    settings
        How to split them.
    names
        Names of all cells of the data.
    rng
        Source of the shuffle.

    Raises
    ------
    TypeError, ValueError
        See :meth:`SplitSettings.external_parts`, :func:`split_populations`, :func:`external_split`.
    """
    parts = settings.external_parts(names)
    if parts is not None:
        return external_split(background, target, external_indexing=parts)
    return split_populations(
        background,
        target,
        train_size=settings.train_size,
        validation_size=settings.validation_size,
        shuffle=settings.shuffle,
        rng=rng,
    )


def split_populations(
    background: Indices,
    target: Indices,
    *,
    train_size: float | None = None,
    validation_size: float | None = None,
    shuffle: bool = True,
    rng: np.random.Generator,
) -> Split:
    """Split each population on its own into training, validation and test cells.

    Parameters
    ----------
    background, target
        Indices of the cells.
    train_size
        Fraction of cells that train; default 0.9, or all that `validation_size` leaves.
    validation_size
        Fraction held out; default all that `train_size` leaves. The remaining cells are test
        cells. The number of training cells is rounded up, that of held-out cells down.
    shuffle
        Shuffle before splitting; otherwise validation, training and test cells follow each other
        in this order, as in scvi-tools.
    rng
        Source of the shuffle.

    Raises
    ------
    ValueError
        If the fractions are out of range, or a population has no cell to train on.
    """
    if train_size is None:
        train_size = 0.9 if validation_size is None else 1.0 - validation_size
    if validation_size is None:
        validation_size = 1.0 - train_size
    if not (0 < train_size <= 1 and 0 <= validation_size <= 1 - train_size + ROUNDING):
        msg = (
            "train_size must be above 0 and at most 1, and train_size + validation_size at most 1, "
            f"not {train_size} and {validation_size}."
        )
        raise ValueError(msg)
    parts = []
    for name, indices in (("background", background), ("target", target)):
        n_train = int(np.ceil(train_size * len(indices) - ROUNDING))
        n_validation = int(validation_size * len(indices) + ROUNDING)
        if n_train == 0:
            msg = f"There are no {name} cells to train on."
            raise ValueError(msg)
        order = rng.permutation(indices) if shuffle else indices
        stops = [n_validation, n_validation + n_train]
        parts.append(np.split(order, stops))
    (b_val, b_train, b_test), (t_val, t_train, t_test) = parts
    return Split(Population(b_train, t_train), Population(b_val, t_val), Population(b_test, t_test))


def external_split(
    background: Indices, target: Indices, *, external_indexing: Sequence[ArrayLike]
) -> Split:
    """Split the populations as given.

    Parameters
    ----------
    background, target
        Indices of the cells.
    external_indexing
        Indices of training, validation and test cells, of both populations; the latter two may be
        left out.

    Raises
    ------
    ValueError
        If there are no parts or more than three, if they overlap, if a cell belongs to neither
        population, or if a population has no training cell.
    """
    parts = [np.asarray(part, dtype=np.int64).reshape(-1) for part in external_indexing]
    if not 1 <= len(parts) <= 3:  # noqa: PLR2004  # train, validation, test
        msg = (
            "external_indexing needs one to three parts (training, validation, test), not "
            f"{len(parts)}."
        )
        raise ValueError(msg)
    parts += [np.empty(0, dtype=np.int64)] * (3 - len(parts))
    named = np.concatenate(parts)
    if len(np.unique(named)) < len(named):
        msg = "external_indexing has some cells twice, within a part or in two parts."
        raise ValueError(msg)
    others = np.setdiff1d(named, np.concatenate([background, target]))
    if others.size:
        msg = f"external_indexing has {others.size} cells of neither population: {others[:3]}."
        raise ValueError(msg)
    train, validation, test = (
        Population(np.intersect1d(part, background), np.intersect1d(part, target)) for part in parts
    )
    if not (len(train.background) and len(train.target)):
        msg = "external_indexing must have training cells of both populations."
        raise ValueError(msg)
    return Split(train, validation, test)


class PairedBatches:
    """Training mini-batches with equal numbers of background and of target cells, without end.

    An epoch is one pass over the larger population, divided into steps of nearly equal size. The
    smaller one is sampled without replacement, and reshuffled whenever it is used up, also in the
    middle of an epoch.

    Parameters
    ----------
    cells
        The two populations.
    batch_size
        Maximum number of cells of each population in a step.
    rng
        Source of the shuffles.
    part, n_parts
        Each step has `n_parts` mini-batches, one for each of the processes that train together;
        they are yielded for this one, counted from 0.

    Raises
    ------
    ValueError
        If a step would have fewer cells than `n_parts`.
    """

    def __init__(
        self,
        cells: Population,
        batch_size: int,
        rng: np.random.Generator,
        part: int = 0,
        n_parts: int = 1,
    ) -> None:
        check_arguments({"batch_size": batch_size})
        self._larger, self._smaller = cells.background, cells.target
        if len(self._larger) < len(self._smaller):
            self._larger, self._smaller = self._smaller, self._larger
        self.steps_per_epoch = -(-len(self._larger) // (batch_size * n_parts))
        self._part, self._n_parts = part, n_parts
        if len(self._larger) // self.steps_per_epoch < n_parts:
            msg = (
                f"There are too few cells to train with {n_parts} processes: one step has "
                f"{len(self._larger) // self.steps_per_epoch} cells of the larger population. Use "
                "fewer devices, or a larger batch_size."
            )
            raise ValueError(msg)
        self._rng = rng
        self._left = np.empty(0, dtype=np.int64)

    def epoch(self) -> Iterator[Indices]:
        """Yield the indices of the cells of each step."""
        for step in self._steps():
            yield np.concatenate(step[self._part])

    def _steps(self) -> Iterator[Step]:
        order = self._shuffled(self._larger)
        for cells in np.array_split(order, self.steps_per_epoch):
            yield [
                (chunk, self._take(min(len(chunk), len(self._smaller))))
                for chunk in np.array_split(cells, self._n_parts)
            ]

    def _shuffled(self, cells: Indices) -> Indices:
        return self._rng.permutation(cells)

    def state_dict(self) -> dict[str, Any]:
        """Return where it is between two epochs."""
        return {"rng": self._rng.bit_generator.state, "left": self._left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self._rng.bit_generator.state = state["rng"]
        self._left = state["left"]

    def _take(self, n: int) -> Indices:
        if len(self._left) < n:
            self._left = np.concatenate([self._left, self._shuffled(self._smaller)])
        taken, self._left = np.split(self._left, [n])
        return taken


def evaluation_batches(cells: Population, batch_size: int) -> Iterator[Indices]:
    """Yield every cell once, with both populations spread evenly over the batches."""
    n_batches = -(-max(len(cells.background), len(cells.target)) // batch_size)
    parts = (np.array_split(p, n_batches) for p in (cells.background, cells.target))
    for background, target in zip(*parts, strict=True):
        yield np.concatenate([background, target])
