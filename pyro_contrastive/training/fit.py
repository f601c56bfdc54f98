"""The training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.objective import site_losses
from pyro_contrastive.torch_tools import evaluating, seeded
from pyro_contrastive.training.checks import check_programs, explain_non_finite
from pyro_contrastive.training.history import EarlyStopping, History
from pyro_contrastive.training.plan import TrainingPlan
from pyro_contrastive.training.progress import EpochBar
from pyro_contrastive.training.splits import PairedBatches, Population, Split, evaluation_batches
from pyro_contrastive.vae import ContrastiveVAE

logger = logging.getLogger(__name__)


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
        Ended by early stopping; by Ctrl-C.
    """

    n_epochs: int
    seconds: float
    stopped_early: bool = False
    interrupted: bool = False


class _Loss(nn.Module):
    """All that is trained, penalties included, as one module whose forward is the loss."""

    def __init__(self, vae: ContrastiveVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, batch: CellBatch) -> Tensor:
        return self.vae.objective.differentiable_loss(self.vae.model, self.vae.guide, batch)


class _Run:
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
        self.data = data
        self.split = split
        self.plan = plan
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.fabric = fabric
        self.batches = PairedBatches(split.train, batch_size, rng)
        self.loss, self.optimizer = fabric.setup(_Loss(vae), plan.optimizer(vae))
        self.step = 0
        vae.objective.data_size = len(split.train)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Take the steps of one epoch; return the means of the loss and its parts."""
        self.vae.train()
        sums: dict[str, Tensor | float] = {}
        for indices in self.batches.epoch():
            batch = self.data.cells(indices, self.fabric.device)
            values = self.train_step(batch, epoch)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
            self.step += 1
        n_steps = self.batches.steps_per_epoch
        means = {name: float(value) / n_steps for name, value in sums.items()}
        loss = means.pop("loss")
        kl_weight = float(self.vae.objective.kl_weight)
        return {"train_loss_epoch": loss, "kl_weight": kl_weight} | _named(means, "train")

    def train_step(self, batch: CellBatch, epoch: int) -> dict[str, Tensor]:
        """Take one gradient step, unless the loss is not finite."""
        objective = self.vae.objective
        objective.kl_weight = self.plan.kl_weight(
            self.step, self.batches.steps_per_epoch, self.max_epochs
        )
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        if not torch.isfinite(loss):
            raise explain_non_finite(self.vae, batch, f"in epoch {epoch}, step {self.step}")
        self.fabric.backward(loss)
        self.optimizer.step()
        return {"loss": loss.detach()} | objective.terms

    def validate(self) -> dict[str, float]:
        """Evaluate the held-out cells, if there are any of both populations."""
        held_out = self.split.validation
        if not (len(held_out.background) and len(held_out.target)):
            return {}
        means = evaluate(self.vae, self.data, held_out, self.batch_size, self.fabric.device)
        return _named(means, "validation")


def _named(means: Mapping[str, float], part: str) -> dict[str, float]:
    """Add the sums scvi-tools reports, and the part of the data to every name."""
    kl = sum(value for name, value in means.items() if name.startswith("kl_"))
    totals = {"elbo": means["reconstruction_loss"] + kl, "kl_local": kl}
    return {f"{name}_{part}": value for name, value in (totals | dict(means)).items()}


def evaluate(
    vae: ContrastiveVAE,
    data: CellData,
    cells: Population,
    batch_size: int,
    device: torch.device | str,
    seed: int = 0,
) -> dict[str, float]:
    """Mean over background plus mean over target cells of each part of the negative ELBO.

    In evaluation mode, one posterior draw per cell from a fixed `seed`, KL divergences analytic
    where they can be and unweighted. Penalties are averaged over the mini-batches.

    Parameters
    ----------
    vae, data
        The model and the data set.
    cells
        Which of its cells.
    batch_size
        Cells of each population at a time.
    device
        Where to evaluate.
    seed
        Of the posterior draws: two calls see the same noise.

    Returns
    -------
    ``reconstruction_loss``, ``kl_z``, ``kl_s``, ``kl_library`` (if latent), and each penalty.
    """
    objective = vae.objective
    sums: dict[str, float] = {}
    penalties: dict[str, list[float]] = {p.name: [] for p in vae.penalties}
    with evaluating(vae), seeded(seed), pyro.validation_enabled(False):
        for indices in evaluation_batches(cells, batch_size):
            batch = data.cells(indices, device)
            is_target = batch.is_target
            weights = torch.where(is_target, 1.0 / len(cells.target), 1.0 / len(cells.background))
            for traces in objective._get_traces(vae.model, vae.guide, (batch,), {}):
                objective._differentiable_loss_particle(*traces)
                for name, term in site_losses(*traces, analytic=True).items():
                    key = "reconstruction_loss" if name == "x" else f"kl_{name}"
                    sums[key] = sums.get(key, 0.0) + float((term * weights).sum())
            for name, values in penalties.items():
                values.append(float(objective.terms[name]))
    return sums | {name: float(np.mean(values)) for name, values in penalties.items()}


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
    check_val_every_n_epoch: int = 1,
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
        When to stop; ``None``: after `max_epochs`.
    check_val_every_n_epoch
        How often to evaluate the held-out cells.
    progress_bar
        Show one.

    Raises
    ------
    NonFiniteLossError
        If the loss becomes NaN or infinite; says at which site.
    """
    start = time.perf_counter()
    run = _Run(
        vae,
        data,
        split,
        plan,
        max_epochs=max_epochs,
        batch_size=batch_size,
        fabric=fabric,
        rng=rng,
    )
    first = next(evaluation_batches(split.train, batch_size))
    check_programs(vae, data.cells(first, fabric.device))
    stopped = interrupted = False
    n_before = history.n_epochs
    with EpochBar(max_epochs, show=progress_bar) as bar, pyro.validation_enabled(False):
        try:
            for epoch in range(max_epochs):
                values = run.train_epoch(epoch)
                if (epoch + 1) % check_val_every_n_epoch == 0:
                    values |= run.validate()
                history.add_epoch(values)
                bar.advance(values)
                if early_stopping is not None and (epoch + 1) % check_val_every_n_epoch == 0:
                    stopped = early_stopping.update(values, vae)
                    if stopped:
                        break
        except KeyboardInterrupt:
            interrupted = True
            logger.warning("Interrupted after %d epochs; what was learned is kept.", epoch)
    if early_stopping is not None:
        early_stopping.restore_best(vae)
    vae.eval()
    vae.objective.kl_weight = plan.max_kl_weight
    n_epochs = history.n_epochs - n_before
    return FitResult(n_epochs, time.perf_counter() - start, stopped, interrupted)
