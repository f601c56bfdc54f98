"""How to optimise: learning rate, weight decay, KL warm-up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from pyro_contrastive._tools.arguments import check_arguments

MAX_EPOCHS = 400
CELLS_AT_MAX_EPOCHS = 20_000
WARMUP_FRACTION = 0.25
FAST_STEPS = 500
MIN_FAST_EPOCHS, MAX_FAST_EPOCHS = 10, 80
FEWEST_FAST_EPOCHS = 2
"""For data so large that the reference schedule is shorter: one epoch of warm-up, one after it."""


def kl_weight_at(step: int, warmup_steps: int, start: float = 0.0, end: float = 1.0) -> float:
    """KL weight of a training step: linear from `start` to `end` over `warmup_steps` steps.

    Parameters
    ----------
    step
        Number of steps taken so far.
    warmup_steps
        Length of the warm-up; 0 for none.
    start, end
        Weight before the first step, and from the end of the warm-up on.
    """
    if step >= warmup_steps:
        return end
    return start + (end - start) * step / warmup_steps


@dataclass(frozen=True)
class TrainingPlan:
    """Optimiser and KL warm-up, under the names of scvi-tools' ``plan_kwargs``.

    The defaults are also those of scvi-tools, except for the length of the warm-up, which there is
    400 epochs however long the run.

    Parameters
    ----------
    lr, weight_decay, eps
        Settings of Adam (coupled weight decay) or AdamW (decoupled).
    optimizer
        ``"Adam"``, ``"AdamW"`` or ``"Custom"``, which takes `optimizer_creator`.
    optimizer_creator
        Function of the parameters that returns an optimiser.
    one_cycle
        Let the learning rate rise from lr / 25 to `lr` over the first part of the run, and fall to
        nearly 0 over the rest, step by step (Smith & Topin 2018, "Super-convergence").
    cycle_rise
        Fraction of the run over which it rises, between 0 and 1; default one third.
    reduce_lr_on_plateau
        Multiply the learning rate by `lr_factor` when `lr_scheduler_metric` has not fallen by
        `lr_threshold` for `lr_patience` epochs, down to `lr_min`.
    lr_factor, lr_patience, lr_threshold, lr_scheduler_metric, lr_min
        See `reduce_lr_on_plateau`; the metric is a quantity of the history.
    n_epochs_kl_warmup, n_steps_kl_warmup
        Length of the linear KL warm-up, in epochs or in steps (epochs win); 0 for none. Default: a
        quarter of the steps of the run, so that the weight reaches its maximum well before the end.
    min_kl_weight, max_kl_weight
        KL weight before the first step and after the warm-up.
    precise_batch_norm
        Recompute the means and variances of batch normalisation from some training mini-batches
        whenever the held-out cells are evaluated, and at the end of the run: see
        :func:`~pyro_contrastive.training.batch_norm.refresh_statistics`. By default they are, as in
        scvi-tools, running averages over about 100 steps. With the fast schedule the weights change
        faster than these, especially with deep counts, and a held-out loss may then be thousands of
        times too large. The weights themselves do not depend on it.
    molecule_dropout
        In training, hide some counts from the encoders: each molecule is lost with this
        probability, and a count if all of its molecules are (:class:`MoleculeDropout
        <pyro_contrastive.networks.MoleculeDropout>`). Encoders then learn less of the noise of the
        training cells, and their posteriors of other cells are better. 0: none. ``"auto"``: the
        more genes and the fewer training cells, the higher: ``sqrt(genes / cells)``, at most 0.8;
        for a guide whose encoders do not see ``log(1 + counts)``, none.
    start_from_data
        Start the likelihood's parameters at values typical of each gene in the training cells,
        instead of at random, when a model is trained for the first time: see
        :meth:`Likelihood.start_from`.
    record_steps
        Run the Python code of model, guide and penalties in some steps only, record its torch
        operations, and replay these in all other steps (default). This is faster and gives the same
        result: recordings are checked against the code repeatedly, and code that cannot be
        recorded, or does not agree with its recording, runs in every step. ``False``: run all code
        in every step, for example because yours prints or counts steps.

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
    optimizer: str = "Adam"
    optimizer_creator: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None
    one_cycle: bool = False
    cycle_rise: float = 1 / 3
    reduce_lr_on_plateau: bool = False
    lr_factor: float = 0.6
    lr_patience: int = 30
    lr_threshold: float = 0.0
    lr_scheduler_metric: str = "elbo_validation"
    lr_min: float = 0.0
    precise_batch_norm: bool = False
    molecule_dropout: float | Literal["auto"] = 0.0
    start_from_data: bool = False
    record_steps: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_arguments(vars(self))
        if self.one_cycle and self.reduce_lr_on_plateau:
            msg = "one_cycle and reduce_lr_on_plateau both set the learning rate; choose one."
            raise ValueError(msg)
        if self.optimizer not in {"Adam", "AdamW", "Custom"}:
            msg = f"optimizer must be 'Adam', 'AdamW' or 'Custom', not {self.optimizer!r}."
            raise ValueError(msg)
        if (self.optimizer == "Custom") != (self.optimizer_creator is not None):
            msg = "optimizer='Custom' and optimizer_creator= go together; give both or neither."
            raise ValueError(msg)
        rate = self.molecule_dropout
        if rate != "auto" and not (isinstance(rate, int | float) and 0 <= rate < 1):
            msg = f"molecule_dropout must be 'auto', or from 0 to below 1, not {rate!r}."
            raise ValueError(msg)
        if not 0 <= self.min_kl_weight <= self.max_kl_weight:
            msg = (
                "KL weights must satisfy 0 <= min_kl_weight <= max_kl_weight, not "
                f"{self.min_kl_weight} and {self.max_kl_weight}."
            )
            raise ValueError(msg)

    @classmethod
    def from_kwargs(cls, plan_kwargs: dict[str, Any] | None, schedule: str = "reference") -> Self:
        """Make a plan from a named schedule and ``plan_kwargs``, which take precedence.

        Raises
        ------
        TypeError
            If `plan_kwargs` has an unknown key; the error lists the known ones.
        ValueError
            If there is no such schedule.
        """
        if schedule not in SCHEDULES:
            msg = f"schedule must be one of {list(SCHEDULES)}, not {schedule!r}."
            raise ValueError(msg)
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(plan_kwargs or {}) - set(known))
        if unknown:
            msg = f"plan_kwargs does not take {unknown}; it takes {known}."
            raise TypeError(msg)
        given = plan_kwargs or {}
        named = SCHEDULES[schedule]
        if given.get("n_steps_kl_warmup") is not None:  # or the epochs of the schedule would win
            named = {key: v for key, v in named.items() if key != "n_epochs_kl_warmup"}
        return cls(**(named | given))

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Make an optimiser of a module's parameters."""
        if self.optimizer_creator is not None:
            return self.optimizer_creator(module.parameters())
        kinds = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
        return kinds[self.optimizer](
            module.parameters(),
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
            fused=True,
        )

    def make_scheduler(self, optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau | None:
        """Make the scheduler that lowers the learning rate by `lr_scheduler_metric`, if any."""
        if not self.reduce_lr_on_plateau:
            return None
        return ReduceLROnPlateau(
            optimizer,
            factor=self.lr_factor,
            patience=self.lr_patience,
            threshold=self.lr_threshold,
            threshold_mode="abs",
            min_lr=self.lr_min,
        )

    def make_cycle(self, optimizer: torch.optim.Optimizer, n_steps: int) -> OneCycleLR | None:
        """Make the scheduler of ``one_cycle`` over a run of `n_steps`, if any."""
        if not self.one_cycle:
            return None
        total = max(n_steps + 1, 4)
        rise = max(self.cycle_rise, 2 / total)  # torch divides by 0 if it rises in one step
        return OneCycleLR(
            optimizer, self.lr, total_steps=total, pct_start=rise, cycle_momentum=False
        )

    def is_rising(self, step: int, n_steps: int) -> bool:
        """Return whether the learning rate still rises at a step, counted from 0, of `n_steps`."""
        return self.one_cycle and step < self.cycle_rise * n_steps

    def kl_weight(self, step: int, steps_per_epoch: int, max_epochs: int) -> float:
        """KL weight of a step, counted from 0 over the whole run."""
        if self.n_epochs_kl_warmup is not None:
            warmup = self.n_epochs_kl_warmup * steps_per_epoch
        elif self.n_steps_kl_warmup is not None:
            warmup = self.n_steps_kl_warmup
        else:
            warmup = round(WARMUP_FRACTION * max_epochs * steps_per_epoch)
        return kl_weight_at(step, warmup, self.min_kl_weight, self.max_kl_weight)


SCHEDULES: dict[str, dict[str, Any]] = {
    "reference": {},
    "fast": {
        "lr": 0.015,
        "eps": 1e-8,
        "one_cycle": True,
        "cycle_rise": 0.1,
        "n_epochs_kl_warmup": 1,
        "precise_batch_norm": True,
        "molecule_dropout": "auto",
        "start_from_data": True,
    },
}
"""Arguments of :class:`TrainingPlan` by the name of the schedule; see ``ContrastiveVI.train``."""


def default_max_epochs(n_cells: int, schedule: str = "reference", steps_per_epoch: int = 1) -> int:
    """Return the number of epochs of a schedule.

    The reference schedule follows scvi-tools: 400 epochs up to 20,000 cells, then fewer. The fast
    one takes about 500 steps, in at least 10 and at most 80 epochs, because a model of few cells
    overfits soon. Above 800,000 cells it is no longer than the reference schedule, but at least 2
    epochs.
    """
    reference = max(1, min(round(CELLS_AT_MAX_EPOCHS / n_cells * MAX_EPOCHS), MAX_EPOCHS))
    if schedule == "fast":
        fewest = min(MIN_FAST_EPOCHS, max(reference, FEWEST_FAST_EPOCHS))
        return min(max(fewest, round(FAST_STEPS / steps_per_epoch)), MAX_FAST_EPOCHS)
    return reference
