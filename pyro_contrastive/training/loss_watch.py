"""Warn of a loss that explodes, even if it comes down again, and keep the weights before it did."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

NAMES = {"elbo_train": "training", "elbo_validation": "held-out"}
EXPLODED = 2.0
"""How much a loss must grow, relative to its earlier size: it is then three times as large."""
_SEEN = ("_first", "_lowest", "_has_warned", "_good_epoch", "_is_good", "_weights")


class LossWatch:
    """Warns, once in a run, of a negative ELBO that has become far larger than before.

    Parameters
    ----------
    lr
        Learning rate of the run; the warning suggests a lower one.
    module
        The module in training, whose last good weights are kept. Default: none are.
    """

    def __init__(self, lr: float, module: nn.Module | None = None) -> None:
        self.lr = lr
        self._weights: dict[str, Tensor] = {}
        self._module = module
        self._good_epoch: int | None = None
        self._is_good = True
        self._keep(None)
        self._first: dict[str, float] = {}
        self._lowest: dict[str, float] = {}
        self._has_warned = False

    def check(self, values: Mapping[str, float], epoch: int) -> None:
        """Check the values of an epoch; `epoch` is its number in the history."""
        self._is_good = True
        for name, kind in NAMES.items():
            if name not in values:
                continue
            value = values[name]
            first = self._first.setdefault(name, value)
            lowest = self._lowest.setdefault(name, value)
            # The negative ELBO of continuous data may be negative, or close to 0.
            size = max(abs(first), abs(lowest))
            if value - lowest > EXPLODED * size:
                # Of held-out cells the averages of batch normalisation may be to blame.
                self._is_good &= name != "elbo_train"
                if not self._has_warned:
                    self._warn(kind, name, value, lowest, epoch)
            self._lowest[name] = min(lowest, value)
        if self._is_good and self._is_finite():
            self._keep(epoch)

    def _keep(self, epoch: int | None) -> None:
        self._good_epoch = epoch
        if self._module is not None:
            state = self._module.state_dict()
            self._weights = {name: value.detach().clone() for name, value in state.items()}

    def _is_finite(self) -> bool:
        parameters = [] if self._module is None else list(self._module.parameters())
        return all(bool(parameter.isfinite().all()) for parameter in parameters)

    @torch.no_grad()
    def put_back(self) -> bool:
        """Put the last good weights back if the present ones are not good; say whether they were.

        They are not good if the loss of the last epoch was still far larger than before, or if
        weights are not finite.
        """
        if self._module is None:
            return False
        if self._is_good and self._is_finite():
            return False
        self._module.load_state_dict(self._weights)
        self._is_good = True
        return True

    @property
    def good_epoch(self) -> int | None:
        """The epoch whose weights are kept; ``None``: those before the run."""
        return self._good_epoch

    def state_dict(self) -> dict[str, Any]:
        """Return what it has seen, and the last good weights."""
        return {name: getattr(self, name) for name in _SEEN}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        for name in _SEEN:
            setattr(self, name, state[name])

    def _warn(self, kind: str, name: str, value: float, lowest: float, epoch: int) -> None:
        self._has_warned = True
        warnings.warn(
            f"The {kind} loss exploded: in epoch {epoch} {name} is {value:,.4g} nats per pair, and "
            f"it was {lowest:,.4g} before. Plot model.history[{name!r}] before you use this "
            "fit. If the loss does not come down again, the last weights before it rose are put "
            "back at the end; then train a new model with a lower learning "
            f'rate, plan_kwargs={{"lr": {self.lr / 3:.2g}}}; and look for cells or genes with '
            "counts far above all others.",
            UserWarning,
            stacklevel=8,
        )
