"""The training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from itertools import islice

import numpy as np
import pyro
from lightning_fabric import Fabric
from torch import Tensor, nn

from pyro_contrastive._tools.torch_tools import own_params, reused_memory
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.components.seen_cells import evenly
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.resident import on_device_if_it_fits
from pyro_contrastive.training.arguments import refuse_never_looking
from pyro_contrastive.training.batch_norm import N_BATCHES, refresh_statistics
from pyro_contrastive.training.evaluate import evaluate, global_sites, loss_of, named
from pyro_contrastive.training.finite import check_programs, no_nan_warnings
from pyro_contrastive.training.history import EarlyStopping, FitResult, History
from pyro_contrastive.training.loss_watch import LossWatch
from pyro_contrastive.training.plan import TrainingPlan
from pyro_contrastive.training.progress import EpochBar
from pyro_contrastive.training.splits import (
    Indices,
    PairedBatches,
    Population,
    Split,
    evaluation_batches,
)
from pyro_contrastive.training.steps import PlainStep, RecordedStep
from pyro_contrastive.training.updates import STEPS_UNSEEN, Updates
from pyro_contrastive.vae import ContrastiveVAE

logger = logging.getLogger(__name__)


class _Loss(nn.Module):
    """All that is trained, penalties included, as one module whose forward is the loss."""

    def __init__(self, vae: ContrastiveVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, batch: CellBatch) -> Tensor:
        return self.vae.objective.differentiable_loss(self.vae.model, self.vae.guide, batch)


class Run:
    """One run of training: what stays the same from step to step."""

    def __init__(
        self,
        vae: ContrastiveVAE,
        data: CellData,
        split: Split,
        plan: TrainingPlan,
        *,
        max_epochs: int,
        batch_size: int,
        fabric: Fabric,
        rng: np.random.Generator,
    ) -> None:
        self.vae = vae
        self.dtype = next(vae.parameters()).dtype
        self.data = on_device_if_it_fits(data, fabric.device, self.dtype)
        self.split = split
        self.plan = plan
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.fabric = fabric
        self.batches = PairedBatches(split.train, batch_size, rng)
        loss, self.optimizer = fabric.setup(_Loss(vae), plan.make_optimizer(vae))
        optimizer = self.optimizer.optimizer
        # A creator of optimisers may have given them more than the model's parameters.
        groups = [group["params"] for group in optimizer.param_groups]
        parameters = dict.fromkeys([*vae.parameters(), *(p for group in groups for p in group)])
        plain = PlainStep(vae, loss, fabric, list(parameters))
        evaluate = RecordedStep(plain) if plan.record_steps else plain
        waits = fabric.device.type != "cuda" or plan.optimizer == "Custom"
        self.updates = Updates(vae, evaluate, optimizer, 1 if waits else STEPS_UNSEEN)
        self.scheduler = plan.make_scheduler(optimizer)
        n_steps = max_epochs * self.batches.steps_per_epoch
        self.cycle = plan.make_cycle(optimizer, n_steps)
        self.step = 0
        self._refreshed_at = 0
        self.global_sites: frozenset[str] = frozenset()
        vae.objective.data_size = len(split.train)

    def check(self, early_stopping: EarlyStopping | None, check_every: int) -> None:
        """Fail before training rather than during it.

        Raises
        ------
        ValueError
            If early stopping watches a quantity that training does not record, or would never look
            because the KL warm-up or the rise of the learning rate lasts until the last check.
        """
        first = next(evaluation_batches(self.split.train, self.batch_size))
        check_programs(self.vae, self.cells(first))
        self.global_sites = global_sites(self.vae, self.cells(first))
        if early_stopping is None and self.scheduler is None:
            return
        pair = Population(self.split.train.background[:1], self.split.train.target[:1])
        means = evaluate(self.vae, self.data, pair, 1, self.fabric.device)
        recorded = {"train_loss", "train_loss_epoch", "kl_weight", *named(means, "train")}
        if self.can_validate:
            recorded |= {"validation_loss", *named(means, "validation")}
        if early_stopping is not None:
            early_stopping.check(recorded)
            last = self.max_epochs // check_every * check_every - 1
            too_long = early_stopping.warmup_epochs if last < early_stopping.warmup_epochs else 0
            if too_long or (self.max_epochs > 1 and not self.may_stop(early_stopping, last)):
                is_warming_up = not self.has_full_weight(last)
                refuse_never_looking(self.max_epochs, too_long, is_warming_up=is_warming_up)
        metric = self.plan.lr_scheduler_metric
        if self.scheduler is not None and metric not in recorded:
            msg = f"lr_scheduler_metric={metric!r} is not recorded; there are {sorted(recorded)}."
            raise ValueError(msg)

    def cells(self, indices: Indices) -> CellBatch:
        """Return cells where the module is, and in its dtype."""
        return self.data.cells(indices, self.fabric.device, self.dtype)

    def lower_learning_rate(self, values: Mapping[str, float]) -> None:
        """Let the schedule look at the values of an epoch."""
        if self.scheduler is not None and self.plan.lr_scheduler_metric in values:
            self.scheduler.step(values[self.plan.lr_scheduler_metric])

    def has_full_weight(self, epoch: int) -> bool:
        """Tell whether the KL warm-up is over before this epoch of the run, counted from 0."""
        steps_per_epoch = self.batches.steps_per_epoch
        weight = self.plan.kl_weight(epoch * steps_per_epoch, steps_per_epoch, self.max_epochs)
        return weight >= self.plan.max_kl_weight

    def is_rising(self, epoch: int) -> bool:
        """Tell whether the learning rate still rises as this epoch, counted from 0, begins."""
        steps_per_epoch = self.batches.steps_per_epoch
        return self.plan.is_rising(epoch * steps_per_epoch, self.max_epochs * steps_per_epoch)

    def may_stop(self, early_stopping: EarlyStopping, epoch: int) -> bool:
        """Tell whether early stopping is to look at this epoch of the run, counted from 0."""
        is_early = epoch < early_stopping.warmup_epochs or self.is_rising(epoch)
        return not is_early and self.has_full_weight(epoch)

    @property
    def can_validate(self) -> bool:
        """Whether there are held-out cells of both populations."""
        held_out = self.split.validation
        return min(len(held_out.background), len(held_out.target)) > 0

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Take the steps of one epoch; return the means of the loss and its parts."""
        self.vae.train()
        sums: dict[str, Tensor | float] = {}
        for indices in self.batches.epoch():
            batch = self.cells(indices)
            values = self.train_step(batch, f"in epoch {epoch}, step {self.step}")
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
            self.step += 1
        self.updates.look()
        n_steps = self.batches.steps_per_epoch
        means = {name: float(value) / n_steps for name, value in sums.items()}
        loss = means.pop("loss")
        kl_weight = float(self.vae.objective.kl_weight)
        losses = {"train_loss": loss, "train_loss_epoch": loss, "kl_weight": kl_weight}
        return losses | self.named(means, "train")

    def named(self, means: Mapping[str, float], part: str) -> dict[str, float]:
        """Give the parts of the negative ELBO the names they have in the history."""
        return named(means, part, self.global_sites, len(self.split.train) / 2)

    def train_step(self, batch: CellBatch, when: str) -> dict[str, Tensor]:
        """Take one gradient step, unless the loss or its gradient is not finite."""
        steps_per_epoch = self.batches.steps_per_epoch
        kl_weight = self.plan.kl_weight(self.step, steps_per_epoch, self.max_epochs)
        found = self.updates.take(batch, kl_weight, when)
        if self.cycle is not None:
            self.cycle.step()
        return {"loss": found.loss} | found.terms

    def refresh_batch_norm(self) -> None:
        """Bring batch normalisation up to the weights there are now, if that is asked for."""
        if not self.plan.precise_batch_norm or self._refreshed_at == self.step:
            return
        # Always the same cells, and no random numbers of the run.
        batches = PairedBatches(self.split.train, self.batch_size, np.random.default_rng(0))
        refresh_statistics(self.vae, map(self.cells, islice(batches.epoch(), N_BATCHES)))
        self._refreshed_at = self.step

    def validate(self) -> dict[str, float]:
        """Evaluate the held-out cells, if there are any of both populations."""
        if not self.can_validate:
            return {}
        self.refresh_batch_norm()
        held_out = self.split.validation
        means = evaluate(self.vae, self.data, held_out, self.batch_size, self.fabric.device)
        return {"validation_loss": loss_of(self.vae, means)} | self.named(means, "validation")


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            msg = f"{name} must be at least 1, not {value}."
            raise ValueError(msg)


def fit(
    vae: ContrastiveVAE,
    data: CellData,
    split: Split,
    plan: TrainingPlan,
    history: History,
    *,
    max_epochs: int,
    batch_size: int,
    fabric: Fabric,
    rng: np.random.Generator,
    early_stopping: EarlyStopping | None = None,
    check_val_every_n_epoch: int | None = 1,
    progress_bar: bool = True,
) -> FitResult:
    """Train `vae` on the training cells of `split`, adding an epoch at a time to `history`.

    Ctrl-C ends the run and keeps what was learned. With `early_stopping` the weights of the best
    epoch are put back at the end, however the run ends.

    Parameters
    ----------
    vae, data, split, plan
        What to train, on what, how.
    history
        Filled as training goes.
    max_epochs
        Epochs at most; one is a pass over the larger population.
    batch_size
        Cells of each population in a step.
    fabric
        Device and precision.
    rng
        Source of the order of the cells; latent noise and dropout come from torch.
    early_stopping
        When to stop; ``None``: after `max_epochs`. It looks only at epochs after the KL warm-up and
        after the rise of the learning rate, if there is one. During the warm-up the loss is not yet
        the one to be compared, and penalties, which the ELBO does not count, do not have their full
        weight; while the rate rises, weights that are hardly trained can seem the best for a while.
    check_val_every_n_epoch
        How often to evaluate the held-out cells; ``None``: never.
    progress_bar
        Show one.

    Raises
    ------
    ValueError
        If a number is out of range, or early stopping watches a quantity that is not recorded, or
        never looks.
    NonFiniteLossError
        If the loss becomes NaN or infinite; says at which site.
    """
    _check_positive(max_epochs=max_epochs)
    if check_val_every_n_epoch is not None:
        _check_positive(check_val_every_n_epoch=check_val_every_n_epoch)
    start = time.perf_counter()
    sizes = {"max_epochs": max_epochs, "batch_size": batch_size}
    run = Run(vae, data, split, plan, **sizes, fabric=fabric, rng=rng)
    train = np.concatenate([split.train.background, split.train.target])
    if plan.start_from_data:
        vae.model.likelihood.start_from(data.gene_moments(train))
    run.check(early_stopping, check_val_every_n_epoch or max_epochs)
    vae.seen_cells.note(data.cells(evenly(train), dense=False))
    stopped = interrupted = False
    n_before = history.n_epochs
    watch = LossWatch(plan.lr)
    try:
        with (
            EpochBar(max_epochs, show=progress_bar) as bar,
            pyro.validation_enabled(False),
            no_nan_warnings(),
            reused_memory(),
            own_params(),
        ):
            for epoch in range(max_epochs):
                is_check = (epoch + 1) % (check_val_every_n_epoch or max_epochs + 1) == 0
                values = run.train_epoch(epoch) | (run.validate() if is_check else {})
                run.lower_learning_rate(values)
                history.add_epoch(values)
                watch.look(values, history.n_epochs - 1)
                bar.advance(values)
                if early_stopping is not None and is_check and run.may_stop(early_stopping, epoch):
                    stopped = early_stopping.update(values, vae, history.n_epochs - 1)
                    if stopped:
                        bar.stop_early(early_stopping.best_epoch)
                        break
    except KeyboardInterrupt:
        interrupted = True
        run.updates.look()  # so that what is kept is finite
        n_done = history.n_epochs - n_before
        logger.warning("Interrupted after %d epochs; what was learned is kept.", n_done)
        run.refresh_batch_norm()
    else:
        run.refresh_batch_norm()
    finally:
        if early_stopping is not None:
            early_stopping.restore_best(vae)
        vae.eval()
        vae.objective.kl_weight = plan.max_kl_weight
    n_epochs = history.n_epochs - n_before
    seconds = time.perf_counter() - start
    best = early_stopping.best_epoch if early_stopping else None
    why = early_stopping.reason if early_stopping and stopped else "Ctrl-C" if interrupted else ""
    return FitResult(n_epochs, seconds, stopped, interrupted, max_epochs, best, why)
