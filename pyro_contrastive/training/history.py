"""The history of training, one number per epoch and quantity; and early stopping."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from pyro_contrastive._tools.arguments import check_arguments

RESTORED = "restored"
"""Name under which the history holds the epoch whose weights were put back."""

_SEEN = ("best", "_to_beat", "_waited", "best_epoch", "_weights")
"""Attributes of early stopping that change during a run."""


class History:
    """Quantities by epoch. :meth:`frames` has the form of scvi-tools' ``model.history``."""

    def __init__(self, first_epoch: int = 0) -> None:
        self._epoch = first_epoch - 1
        self._values: dict[str, dict[int, float]] = {}

    @property
    def restored_epoch(self) -> int | None:
        """Epoch whose weights were put back at the end of the last run; ``None`` if none were."""
        return next(iter(self._values.get(RESTORED, ())), None)

    def note_restored(self, epoch: int | None) -> None:
        """Record the epoch whose weights the model has now, if they are not those of the last."""
        self._values.pop(RESTORED, None)
        if epoch is not None:
            self._values[RESTORED] = {epoch: 1.0}

    @property
    def n_epochs(self) -> int:
        """Number of epochs recorded, earlier runs included."""
        return self._epoch + 1

    def add_epoch(self, values: Mapping[str, float]) -> None:
        """Record one epoch."""
        self._epoch += 1
        for name, value in values.items():
            self._values.setdefault(name, {})[self._epoch] = value

    def frames(self) -> dict[str, pd.DataFrame]:
        """Return ``{name: frame}``, each frame with one column `name`, indexed by epoch."""
        return {
            name: pd.DataFrame({name: pd.Series(values, dtype=float)}).rename_axis("epoch")
            for name, values in self._values.items()
        }

    def to_json(self) -> dict[str, dict[str, float]]:
        """Return the values by name and epoch."""
        return {n: {str(e): x for e, x in v.items()} for n, v in self._values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Mapping[str, float]]) -> History:
        """Read what :meth:`to_json` returned."""
        history = cls()
        history.replace(values)
        return history

    def replace(self, values: Mapping[str, Mapping[str, float]]) -> None:
        """Replace everything by what :meth:`to_json` of another history returned."""
        self._values = {n: {int(e): x for e, x in v.items()} for n, v in values.items()}
        self._epoch = max((e for v in self._values.values() for e in v), default=-1)


class EarlyStopping:
    """Watches one quantity, and keeps the weights with its best value.

    Parameters
    ----------
    monitor
        Name of the quantity in the history.
    patience
        Number of checks without improvement after which to stop.
    min_delta
        How much the quantity must improve for the count of `patience` to restart. The weights kept
        are those of the best value, however small the improvement.
    mode
        Whether smaller (``"min"``) or larger (``"max"``) is better.
    warmup_epochs
        Number of epochs at the start of the run that are not checked.
    is_optional
        Train without it, rather than refuse to train, where it could check nothing: no cells are
        held out, or the warm-up lasts until the end.

    Raises
    ------
    ValueError
        If `patience` is less than 1, `min_delta` or `warmup_epochs` is negative, or `mode` is
        neither of the two.
    """

    def __init__(
        self,
        monitor: str,
        patience: int,
        min_delta: float,
        *,
        mode: Literal["min", "max"] = "min",
        warmup_epochs: int = 0,
        is_optional: bool = False,
    ) -> None:
        check_arguments(
            {
                "early_stopping_patience": patience,
                "early_stopping_min_delta": min_delta,
                "early_stopping_mode": mode,
                "early_stopping_warmup_epochs": warmup_epochs,
            }
        )
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.warmup_epochs = warmup_epochs
        self.is_optional = is_optional
        self._sign = 1.0 if mode == "min" else -1.0
        self.best = float("inf")
        self._to_beat = float("inf")
        self._waited = 0
        self.best_epoch: int | None = None
        self._weights: dict[str, Tensor] | None = None

    def check(self, recorded: Collection[str]) -> None:
        """Refuse a quantity that will not be recorded.

        Raises
        ------
        ValueError
            If the monitored quantity is not in `recorded`; the error lists those that are.
        """
        if self.monitor in recorded:
            return
        msg = f"Early stopping watches {self.monitor!r}, which is not recorded. "
        if self.monitor.endswith("_validation") and self.monitor[:-10] + "train" in recorded:
            msg += (
                "One of the populations has no held-out cells (too few cells, or train_size=1): "
                "lower train_size, or train without early_stopping."
            )
        else:
            msg += f"It can watch {sorted(recorded)}."
        raise ValueError(msg)

    def update(
        self, values: Mapping[str, float], module: nn.Module, epoch: int | None = None
    ) -> bool:
        """Check the values of an epoch, given its number; return whether to stop."""
        value = self._sign * values[self.monitor]
        if value < self.best:
            self.best = value
            self.best_epoch = epoch
            self._weights = {k: v.detach().clone() for k, v in module.state_dict().items()}
        if value < self._to_beat - self.min_delta:
            self._to_beat = value
            self._waited = 0
        else:
            self._waited += 1
        return self._waited >= self.patience

    @property
    def reason(self) -> str:
        """The reason why training stops, as a sentence."""
        return f"{self.monitor} has not improved for {self.patience} checks"

    def state_dict(self) -> dict[str, Any]:
        """Return what it has seen: numbers, and the best weights."""
        return {name: getattr(self, name) for name in _SEEN}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        for name in _SEEN:
            setattr(self, name, state[name])

    @torch.no_grad()
    def restore_best(self, module: nn.Module) -> None:
        """Restore the weights with the best value seen, if there was a check."""
        if self._weights is not None:
            module.load_state_dict(self._weights)


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Parameters
    ----------
    n_epochs
        Epochs completed in this run.
    seconds
        Wall time.
    stopped_early, interrupted
        Whether early stopping, or Ctrl-C, ended it.
    max_epochs
        Number of epochs planned.
    best_epoch
        Epoch whose weights were put back at the end, counted from 0 as in the history: by early
        stopping, or because the loss had exploded. ``None``: the weights are those of the last
        epoch.
    reason
        Why it ended before `max_epochs`; empty if it did not.
    """

    n_epochs: int
    seconds: float
    stopped_early: bool = False
    interrupted: bool = False
    max_epochs: int | None = None
    best_epoch: int | None = None
    reason: str = ""
