"""One run of training: what stays the same from step to step."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor, nn

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive.cells import CellBatch, X
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.resident import on_device_if_it_fits
from pyro_contrastive.observed.on_disk import OnDisk
from pyro_contrastive.training.arguments import refuse_never_checking
from pyro_contrastive.training.batch_norm import N_BATCHES, refresh_statistics
from pyro_contrastive.training.blocks import BlockBatches, in_blocks
from pyro_contrastive.training.evaluate import evaluate, global_parts, loss_of, named
from pyro_contrastive.training.exchange import Exchange
from pyro_contrastive.training.finite import Names, check_programs
from pyro_contrastive.training.hidden_counts import can_hide, rate_for
from pyro_contrastive.training.history import EarlyStopping
from pyro_contrastive.training.plan import TrainingPlan
from pyro_contrastive.training.processes import Processes
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


@dataclass(frozen=True)
class RunSettings:
    """Length of a run, and what is done between its steps.

    Parameters
    ----------
    max_epochs
        Epochs at most; one is a pass over the larger population.
    batch_size
        Cells of each population in a step.
    early_stopping
        When to stop; ``None``: after `max_epochs`. It checks only epochs after the KL warm-up, and
        after the rise of the learning rate if there is one. During the warm-up the loss is not yet
        the one to compare, and penalties, which the ELBO leaves out, do not have their full weight;
        while the rate rises, weights that have hardly been trained can seem best for a while.
    check_val_every_n_epoch
        How often to evaluate the held-out cells, in epochs; ``None``: never.
    progress_bar
        Show a progress bar.
    cell_names
        Names of the cells, for messages.

    Raises
    ------
    ValueError
        If a number of epochs is out of range.
    """

    max_epochs: int
    batch_size: int = 128
    early_stopping: EarlyStopping | None = None
    check_val_every_n_epoch: int | None = 1
    progress_bar: bool = True
    cell_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_arguments(
            {
                "max_epochs": self.max_epochs,
                "check_val_every_n_epoch": self.check_val_every_n_epoch,
                "batch_size": self.batch_size,
            }
        )

    def is_check(self, epoch: int) -> bool:
        """Return whether the held-out cells are evaluated after this epoch, counted from 0."""
        every = self.check_val_every_n_epoch
        return every is not None and (epoch + 1) % every == 0


class _Loss(nn.Module):
    """All that is trained, penalties included, as a module whose forward is the loss."""

    def __init__(self, vae: ContrastiveVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, batch: CellBatch) -> Tensor:
        return self.vae.objective.differentiable_loss(self.vae.model, self.vae.guide, batch)


class Run:
    """One run of training.

    Parameters
    ----------
    vae, data, split, plan
        The model, the data, the split of its cells and the plan.
    settings
        See :class:`RunSettings`.
    fabric
        Devices and processes.
    rng
        Source of the order of the cells; latent noise and dropout come from torch.
    """

    def __init__(
        self,
        vae: ContrastiveVAE,
        data: CellData,
        split: Split,
        plan: TrainingPlan,
        settings: RunSettings,
        *,
        fabric: Fabric,
        rng: np.random.Generator,
    ) -> None:
        self.vae = vae
        self.dtype = next(vae.parameters()).dtype
        self.data = on_device_if_it_fits(data, fabric.device, self.dtype)
        source = data.observed[X]
        on_disk = source if isinstance(source, OnDisk) else None
        self.split = split if on_disk is None else in_blocks(split, on_disk)
        self.plan = plan
        self.settings = settings
        self.max_epochs, self.batch_size = settings.max_epochs, settings.batch_size
        self.fabric = fabric
        self.processes = Processes(fabric)
        share = self.processes.rank, self.processes.size
        self._sampler = PairedBatches if on_disk is None else partial(BlockBatches, on_disk)
        self.batches = self._sampler(split.train, self.batch_size, rng, *share)
        loss, self.optimizer = fabric.setup(_Loss(vae), plan.make_optimizer(vae))
        optimizer = self.optimizer.optimizer
        # An optimizer_creator may have added parameters that are not the model's.
        groups = [group["params"] for group in optimizer.param_groups]
        parameters = list(
            dict.fromkeys([*vae.parameters(), *(p for group in groups for p in group)])
        )
        self.other_parameters = parameters[len(list(vae.parameters())) :]
        plain = PlainStep(vae, loss, fabric, parameters)
        evaluate = RecordedStep(plain) if plan.record_steps else plain
        waits = fabric.device.type != "cuda" or plan.optimizer == "Custom"
        self.updates = Updates(vae, evaluate, optimizer, 1 if waits else STEPS_UNSEEN)
        if self.processes.size > 1:
            self.updates.exchange = Exchange(self.processes, plain.parameters)
        self.scheduler = plan.make_scheduler(optimizer)
        n_steps = self.max_epochs * self.batches.steps_per_epoch
        self.cycle = plan.make_cycle(optimizer, n_steps)
        self.step = 0
        self.refreshed_at = 0
        self.global_parts: frozenset[str] = frozenset()
        vae.objective.data_size = len(split.train)

    def check(self) -> None:
        """Fail before training rather than during it.

        Raises
        ------
        ValueError
            If early stopping watches a quantity that training does not record, or would never
            check one because the KL warm-up or the rise of the learning rate lasts until the end.
        """
        first = next(evaluation_batches(self.split.train, self.batch_size))
        check_programs(self.vae, self.cells(first), partial(self._names, first))
        self.global_parts = global_parts(self.vae, self.cells(first))
        stopping = self.settings.early_stopping
        if stopping is None and self.scheduler is None:
            return
        pair = Population(self.split.train.background[:1], self.split.train.target[:1])
        means = evaluate(self.vae, self.data, pair, 1, self.fabric.device)
        recorded = {"train_loss", "train_loss_epoch", "kl_weight", *named(means, "train")}
        if self.can_validate:
            recorded |= {"validation_loss", *named(means, "validation")}
        if stopping is not None and not stopping.is_optional:
            stopping.check(recorded)
            self._refuse_idle_stopping(stopping)
        metric = self.plan.lr_scheduler_metric
        if self.scheduler is not None and metric not in recorded:
            msg = f"lr_scheduler_metric={metric!r} is not recorded; there are {sorted(recorded)}."
            raise ValueError(msg)

    def _refuse_idle_stopping(self, stopping: EarlyStopping) -> None:
        """Refuse early stopping that would check no epoch of the run."""
        every = self.settings.check_val_every_n_epoch or self.max_epochs
        last = self.max_epochs // every * every - 1
        too_long = stopping.warmup_epochs if last < stopping.warmup_epochs else 0
        if too_long or (self.max_epochs > 1 and not self.may_stop(stopping, last)):
            is_warming_up = not self.has_full_weight(last)
            refuse_never_checking(self.max_epochs, too_long, is_warming_up=is_warming_up)

    @property
    def molecule_dropout(self) -> float:
        """Probability that a molecule is hidden from the encoders.

        Raises
        ------
        ValueError
            If the plan asks for it, and the guide has no encoders of counts.
        """
        rate, is_possible = self.plan.molecule_dropout, can_hide(self.vae)
        if rate == "auto":
            n_cells = len(self.split.train)
            return rate_for(self.vae.n_input, n_cells) if is_possible else 0.0
        if rate and not is_possible:
            msg = (
                f"molecule_dropout={rate} hides counts from encoders that see log(1 + counts); the "
                f"{type(self.vae.guide).__name__} of this model has none. Use 0 or 'auto'."
            )
            raise ValueError(msg)
        return rate

    def cells(self, indices: Indices) -> CellBatch:
        """Return cells on the device of the module, in its dtype."""
        return self.data.cells(indices, self.fabric.device, self.dtype)

    def cells_of(self, steps: Iterable[Indices]) -> Generator[CellBatch, None, None]:
        """Yield the cells of each step as :meth:`cells`; those on disk are read ahead."""
        yield from self.data.batches(steps, self.fabric.device, self.dtype)

    def lower_learning_rate(self, values: Mapping[str, float]) -> None:
        """Pass the values of an epoch to the scheduler, which may lower the learning rate."""
        if self.scheduler is not None and self.plan.lr_scheduler_metric in values:
            self.scheduler.step(values[self.plan.lr_scheduler_metric])

    def has_full_weight(self, epoch: int) -> bool:
        """Return whether the KL warm-up is over before this epoch of the run, counted from 0."""
        steps_per_epoch = self.batches.steps_per_epoch
        weight = self.plan.kl_weight(epoch * steps_per_epoch, steps_per_epoch, self.max_epochs)
        return weight >= self.plan.max_kl_weight

    def is_rising(self, epoch: int) -> bool:
        """Return whether the learning rate still rises when this epoch begins, counted from 0."""
        steps_per_epoch = self.batches.steps_per_epoch
        return self.plan.is_rising(epoch * steps_per_epoch, self.max_epochs * steps_per_epoch)

    def may_stop(self, early_stopping: EarlyStopping, epoch: int) -> bool:
        """Return whether early stopping may check this epoch of the run, counted from 0."""
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
        steps = list(self.batches.epoch())
        with closing(self.cells_of(steps)) as batches:
            for indices, batch in zip(steps, batches, strict=True):
                when = f"in epoch {epoch}, step {self.step}"
                values = self.train_step(batch, when, partial(self._names, indices))
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value
                self.step += 1
        self.updates.check()
        self.updates.clipping.report(epoch)
        self.processes.refuse_drift(self.vae.parameters())
        # Running averages of batch normalisation are those of each process's own cells.
        self.processes.give_those_of_first(self.vae.buffers())
        n_steps = self.batches.steps_per_epoch
        means = {name: float(value) / n_steps for name, value in sums.items()}
        loss = means.pop("loss")
        kl_weight = float(self.vae.objective.kl_weight)
        losses = {"train_loss": loss, "train_loss_epoch": loss, "kl_weight": kl_weight}
        return losses | self.named(means, "train")

    def named(self, means: Mapping[str, float], part: str) -> dict[str, float]:
        """Name the parts of the negative ELBO as in the history."""
        return named(means, part, self.global_parts, len(self.split.train) / 2)

    def _names(self, indices: Indices) -> list[str]:
        """Return the names of cells, or their positions in the data, for messages."""
        names = self.settings.cell_names
        return [f"number {i}" if names is None else repr(str(names[i])) for i in indices]

    def train_step(
        self, batch: CellBatch, when: str, cells: Names | None = None
    ) -> dict[str, Tensor]:
        """Take one gradient step, unless the loss or its gradient is not finite; see `Updates`."""
        steps_per_epoch = self.batches.steps_per_epoch
        kl_weight = self.plan.kl_weight(self.step, steps_per_epoch, self.max_epochs)
        found = self.updates.take(batch, kl_weight, when, cells)
        if self.cycle is not None:
            self.cycle.step()
        return {"loss": found.loss} | found.terms

    def refresh_batch_norm(self) -> None:
        """Recompute the statistics of batch normalisation for the present weights, if asked for."""
        if not self.plan.precise_batch_norm or self.refreshed_at == self.step:
            return
        # The same cells each time, drawn without using the run's random numbers.
        batches = self._sampler(self.split.train, self.batch_size, np.random.default_rng(0))
        refresh_statistics(self.vae, self.cells_of(islice(batches.epoch(), N_BATCHES)))
        self.processes.give_those_of_first(self.vae.buffers())
        self.refreshed_at = self.step

    def validate(self) -> dict[str, float]:
        """Evaluate the held-out cells, if there are any of both populations."""
        if not self.can_validate:
            return {}
        self.refresh_batch_norm()
        held_out = self.split.validation
        where = self.fabric.device, 0, self.processes
        means = evaluate(self.vae, self.data, held_out, self.batch_size, *where)
        return {"validation_loss": loss_of(self.vae, means)} | self.named(means, "validation")
