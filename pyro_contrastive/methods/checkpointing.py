"""Checkpoints of ``train``: what identifies them, and continuing from one."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyro_contrastive.cells import X
from pyro_contrastive.components.component import as_json_value
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.observed.on_disk import OnDisk
from pyro_contrastive.saving.checkpoints import (
    CheckpointFolder,
    Interval,
    find_checkpoint,
    refuse_other,
    refuse_unfinished,
)
from pyro_contrastive.saving.saved_model import components_of, elbo_name
from pyro_contrastive.training.calls import TrainCall
from pyro_contrastive.training.splits import Split
from pyro_contrastive.training.trained_cells import digest_of

if TYPE_CHECKING:
    from pyro_contrastive.methods.base import ModelBase

ARGUMENTS = ("checkpoint", "checkpoint_every_n_epochs", "checkpoint_every_n_minutes", "resume")
"""Arguments of ``train`` that are about checkpoints, and not part of what is repeated."""
_FREE = {"enable_progress_bar", "accelerator", "devices", "num_nodes"}
"""Arguments that may differ when a run is continued; the number of processes may not."""
_LONGEST = 200

Identity = dict[str, dict[str, Any]]
Path_ = str | os.PathLike[str] | None


@dataclass(frozen=True)
class CheckpointRequest:
    """The arguments of ``train`` about checkpoints.

    Parameters
    ----------
    folder
        Where to write; by default where the run is continued from.
    interval
        How often.
    resume
        The folder with the checkpoint to continue from.
    """

    folder: Path
    interval: Interval
    resume: Path | None

    @classmethod
    def of(
        cls, checkpoint: Path_, n_epochs: int | None, n_minutes: float, resume: Path_
    ) -> CheckpointRequest | None:
        """Read the arguments; ``None`` if no checkpoints are asked for.

        Raises
        ------
        ValueError
            If an interval is given, and no folder.
        """
        if checkpoint is None and resume is None:
            if n_epochs is not None:
                msg = "checkpoint_every_n_epochs has no effect without checkpoint=, a folder."
                raise ValueError(msg)
            return None
        folder = Path(checkpoint if checkpoint is not None else resume)  # type: ignore[arg-type]  # one is given
        start = None if resume is None else Path(resume)
        return cls(folder, Interval(n_minutes, n_epochs), start)


class TrainingCheckpoints:
    """The checkpoints of one call of ``train``.

    Parameters
    ----------
    model
        The model to train.
    request
        What was asked for.
    call
        The other arguments of the call.
    data, names
        The data, and the names of their cells.
    n_processes
        Number of processes that train together. All of them read checkpoints; only the first one
        writes.

    Raises
    ------
    FileNotFoundError, InvalidFileError
        If there is no checkpoint to continue from, or it is damaged.
    FileExistsError
        If a new run is asked for where another one has not ended.
    ValueError
        If the checkpoint is of another model, of other data, or of other settings.
    """

    def __init__(
        self,
        model: ModelBase,
        request: CheckpointRequest,
        call: TrainCall,
        data: CellData,
        names: pd.Index,
        n_processes: int,
    ) -> None:
        self.model, self.request, self.call = model, request, call
        self.identity = _as_json(
            {
                "model": _model(model),
                "data set": _data(data, names),
                "training": {**_arguments(call.arguments), "number of processes": n_processes},
            }
        )
        self._resumed = None
        if request.resume is not None:
            self._resumed = find_checkpoint(request.resume)
            refuse_other(*self._resumed, self.identity)
            self._warn_of_device()
        if request.resume is None or request.resume.resolve() != request.folder.resolve():
            refuse_unfinished(request.folder)

    def start_random(self) -> TrainCall:
        """Put torch's random numbers in the state in which the run began; return its call."""
        if self._resumed is not None:
            before = self._resumed[1].content["random_state"]
            if before is not None:
                torch.set_rng_state(before)
            self.call = replace(self.call, random_state=before)
        return self.call

    def of_split(self, split: Split) -> CheckpointFolder:
        """Return the checkpoints of a run with this split; the model then has what it began with.

        Raises
        ------
        ValueError
            If the split is not that of the run to be continued.
        """
        model = self.model
        parts = [p for s in (split.train, split.validation, split.test) for p in _parts(s)]
        self.identity["split of the cells"] = {"cells": _digest(*parts)}
        if self._resumed is not None:
            refuse_other(*self._resumed, self.identity)
            content = self._resumed[1].content
            if content["first_weights"] is not None:
                model._untrained_module = copy.deepcopy(model.module)
                model._untrained_module.load_state_dict(content["first_weights"])
            if len(content["runs"]) != len(model._runs):
                model._runs = tuple(map(TrainCall.from_json, content["runs"]))
        first = model._untrained_module
        fixed = {
            "first_weights": None if first is None else first.state_dict(),
            "runs": [run.to_json() for run in model._runs],
            "random_state": self.call.random_state,
            "threads": self.call.threads,
            "device": self.call.device,
        }
        folder, interval = self.request.folder, self.request.interval
        return CheckpointFolder(folder, interval, self.identity, fixed, self._resumed)

    def _warn_of_device(self) -> None:
        assert self._resumed is not None
        was, now = self._resumed[1].content, self.call
        if (was["threads"], was["device"]) != (now.threads, now.device):
            warnings.warn(
                f"The run began with {was['threads']} threads on the device {was['device']}, and "
                f"is continued with {now.threads} on {now.device}: its last digits may differ from "
                "those of an uninterrupted one.",
                UserWarning,
                stacklevel=5,
            )


def _model(model: ModelBase) -> dict[str, Any]:
    components = components_of(model.module)
    setup = json.loads(model.setup.to_json())
    return {
        **{name: _short(value) for name, value in setup.items()},
        **model.settings,
        **components,
        "objective": elbo_name(model.module),
    }


def _data(data: CellData, names: pd.Index) -> dict[str, Any]:
    codes = {
        "conditions": data.condition,
        "batches": data.batch,
        "categorical covariates": data.categorical,
        "continuous covariates": data.continuous,
        "size factors": data.size_factor,
        "total counts": data.totals(),
    }
    digests = {name: None if each is None else _digest(each) for name, each in codes.items()}
    source = data.observed[X]
    place: dict[str, Any] = {"place of the counts": "memory"}
    if isinstance(source, OnDisk):  # the order of the mini-batches depends on how they are read
        place = {"place of the counts": "disk", **source.layout}
    return {"number of cells": len(names), "cell names": digest_of(names), **digests, **place}


def _arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _short(value) for name, value in arguments.items() if name not in _FREE}


def _short(value: Any) -> Any:
    """Return a value as JSON, or a hash of it if that is long; objects by the name of the class."""
    text = json.dumps(value, default=_named, sort_keys=True)
    long = len(text) > _LONGEST
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if long else json.loads(text)


def _named(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return value.tolist()
    return getattr(value, "__qualname__", type(value).__qualname__)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=as_json_value))


def _parts(population: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return population.background, population.target


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
