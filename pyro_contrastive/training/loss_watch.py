"""Warn of a loss that explodes, even if it comes down again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

NAMES = {"elbo_train": "training", "elbo_validation": "held-out"}
EXPLODED = 2.0
"""How much a loss must grow, relative to its earlier size: it is then three times as large."""


class LossWatch:
    """Warns, once in a run, of a negative ELBO that has become far larger than before.

    Parameters
    ----------
    lr
        Learning rate of the run; the warning suggests a lower one.
    """

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self._first: dict[str, float] = {}
        self._lowest: dict[str, float] = {}
        self._has_warned = False

    def check(self, values: Mapping[str, float], epoch: int) -> None:
        """Check the values of an epoch; `epoch` is its number in the history."""
        for name, kind in NAMES.items():
            if name not in values:
                continue
            value = values[name]
            first = self._first.setdefault(name, value)
            lowest = self._lowest.setdefault(name, value)
            # The negative ELBO of continuous data may be negative, or close to 0.
            size = max(abs(first), abs(lowest))
            if value - lowest > EXPLODED * size and not self._has_warned:
                self._warn(kind, name, value, lowest, epoch)
            self._lowest[name] = min(lowest, value)

    def _warn(self, kind: str, name: str, value: float, lowest: float, epoch: int) -> None:
        self._has_warned = True
        warnings.warn(
            f"The {kind} loss exploded: in epoch {epoch} {name} is {value:,.4g} nats per pair, and "
            f"it was {lowest:,.4g} before. Plot model.history[{name!r}] before you use this "
            "fit. If the loss does not come down again, train a new model with a lower learning "
            f'rate, plan_kwargs={{"lr": {self.lr / 3:.2g}}}; and look for cells or genes with '
            "counts far above all others.",
            UserWarning,
            stacklevel=8,
        )
