"""What must be the same in all processes that train together, in short texts to compare."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pyro_contrastive.components.seen_cells import evenly
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.training.plan import TrainingPlan
from pyro_contrastive.training.run import Run, RunSettings


def digests(run: Run, data: CellData) -> dict[str, str]:
    """Return a short text for counts, labels, split, model and settings of a run."""
    split = run.split
    parts = (split.train, split.validation, split.test)
    state = run.vae.state_dict()
    penalties = [(penalty.name, penalty.weight) for penalty in run.vae.penalties]
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in state.items()]
    return {
        "their counts": _of_arrays(_counts(data)),
        "conditions, batches or covariates of their cells": _of_arrays(
            (data.condition, data.batch, data.categorical, data.continuous, data.size_factor)
        ),
        "the split of their cells": _of_arrays(
            indices for part in parts for indices in (part.background, part.target)
        ),
        "the parts of their models": _of_text([str(run.vae), shapes, penalties]),
        "the arguments of train()": _of_text([_plan(run.plan), _settings(run.settings)]),
    }


def _counts(data: CellData) -> Iterable[NDArray[Any]]:
    """Yield the total counts of all cells, and the counts by gene of some."""
    yield data.totals()
    rows = csr_matrix(data.rows(evenly(np.arange(len(data)))))
    rows.sum_duplicates()
    yield from (np.array(rows.shape), rows.indptr, rows.indices, rows.data)


def _plan(plan: TrainingPlan) -> list[str]:
    values = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return [f"{name}={value}" for name, value in values.items() if not callable(value)]


def _settings(settings: RunSettings) -> list[Any]:
    stopping = settings.early_stopping
    watched = None if stopping is None else (stopping.monitor, stopping.patience)
    return [settings.max_epochs, settings.batch_size, settings.check_val_every_n_epoch, watched]


def _of_arrays(arrays: Iterable[NDArray[Any] | None]) -> str:
    digest = sha256()
    for array in arrays:
        # Integers of 32 and of 64 bits hold the same indices.
        values = np.empty(0) if array is None else np.ascontiguousarray(array, np.float64)
        digest.update(f"{values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _of_text(values: list[Any]) -> str:
    return sha256(repr(values).encode()).hexdigest()
