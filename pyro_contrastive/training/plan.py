"""How to optimise: learning rate, weight decay, KL warm-up."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import nn

from pyro_contrastive.objective import kl_weight_at

MAX_EPOCHS = 400
CELLS_AT_MAX_EPOCHS = 20_000
WARMUP_FRACTION = 0.25


@dataclass(frozen=True)
class TrainingPlan:
    """Optimiser and KL warm-up, under the names of scvi-tools' ``plan_kwargs``.

    The defaults are scvi-tools' too, but for the length of the warm-up: there it is 400 epochs,
    however long the run.

    Parameters
    ----------
    lr, weight_decay, eps
        Of Adam (coupled weight decay).
    n_epochs_kl_warmup, n_steps_kl_warmup
        Length of the linear KL warm-up, in epochs or in steps (epochs win); 0 for none. Default: a
        quarter of the steps of the run, so that the weight reaches its maximum well before the end.
    min_kl_weight, max_kl_weight
        KL weight before the first step and after the warm-up.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-6
    eps: float = 0.01
    n_epochs_kl_warmup: int | None = None
    n_steps_kl_warmup: int | None = None
    min_kl_weight: float = 0.0
    max_kl_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if not self.lr > 0:
            msg = f"lr must be positive, not {self.lr}."
            raise ValueError(msg)
        for name in ("n_epochs_kl_warmup", "n_steps_kl_warmup"):
            length = getattr(self, name)
            if length is not None and length < 0:
                msg = f"{name} must be at least 0, not {length}."
                raise ValueError(msg)
        if not 0 <= self.min_kl_weight <= self.max_kl_weight:
            msg = (
                "KL weights must satisfy 0 <= min_kl_weight <= max_kl_weight, not "
                f"{self.min_kl_weight} and {self.max_kl_weight}."
            )
            raise ValueError(msg)

    @classmethod
    def from_kwargs(cls, plan_kwargs: dict[str, Any] | None) -> Self:
        """Make a plan from ``plan_kwargs``.

        Raises
        ------
        TypeError
            If there is a key the plan does not know; the error lists those it does.
        """
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(plan_kwargs or {}) - set(known))
        if unknown:
            msg = f"plan_kwargs does not know {unknown}; it takes {known}."
            raise TypeError(msg)
        return cls(**(plan_kwargs or {}))

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Make the optimiser of a module's parameters."""
        return torch.optim.Adam(
            module.parameters(),
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
            fused=True,
        )

    def kl_weight(self, step: int, steps_per_epoch: int, max_epochs: int) -> float:
        """KL weight of a step, counted from 0 over the whole run."""
        if self.n_epochs_kl_warmup is not None:
            warmup = self.n_epochs_kl_warmup * steps_per_epoch
        elif self.n_steps_kl_warmup is not None:
            warmup = self.n_steps_kl_warmup
        else:
            warmup = round(WARMUP_FRACTION * max_epochs * steps_per_epoch)
        return kl_weight_at(step, warmup, self.min_kl_weight, self.max_kl_weight)


def default_max_epochs(n_cells: int) -> int:
    """Epochs for `n_cells` cells, by scvi-tools' rule: 400 up to 20,000 cells, then fewer."""
    return max(1, min(round(CELLS_AT_MAX_EPOCHS / n_cells * MAX_EPOCHS), MAX_EPOCHS))
