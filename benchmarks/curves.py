"""Training runs of scvi-tools and ours, with the held-out ELBO evaluated after every epoch."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyro
from anndata import AnnData
from held_out_elbo import train_reference

from pyro_contrastive import HSIC, MMD, ContrastiveVI, LateSalient, Penalty, Wasserstein
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.interop.scvi import rename_scvi_weights
from pyro_contrastive.training.devices import one_device
from pyro_contrastive.training.evaluate import evaluate
from pyro_contrastive.training.fit import fit
from pyro_contrastive.training.history import EarlyStopping, History
from pyro_contrastive.training.plan import TrainingPlan, default_max_epochs
from pyro_contrastive.training.run import RunSettings
from pyro_contrastive.training.splits import Population, Split, split_populations
from pyro_contrastive.vae import ContrastiveVAE

BATCH_SIZE = 128
PARTS = ("reconstruction_loss", "kl_z", "kl_s")


@dataclass(frozen=True)
class Setting:
    """How to train ours: schedule, steps and plan that override its own, weights of penalties.

    `model` holds further arguments of ``ContrastiveVI``.

    The weights are those of Wasserstein, MMD, HSIC and LateSalient, in this order. ``annealed``
    says whether the first three grow with the KL weight; in the preset they do not.
    """

    schedule: str = "fast"
    steps: int | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    penalties: Sequence[float] = ()
    annealed: bool = False
    early_stopping: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)

    def make_penalties(self) -> list[Penalty]:
        """Make the penalties with a non-zero weight."""
        lasting = (Wasserstein, partial(MMD, site="z"), HSIC)
        kinds = [*(partial(kind, annealed=self.annealed) for kind in lasting), LateSalient]
        return [kind(weight) for kind, weight in zip(kinds, self.penalties, strict=False) if weight]


class Clock:
    """Processor seconds of training, without the evaluation after each epoch."""

    def __init__(self, held_out: Callable[[], dict[str, float]]) -> None:
        self.held_out = held_out
        self.away = 0.0
        self.curve: list[tuple[float, float]] = []
        self.begun = time.process_time()

    def seconds(self) -> float:
        """Processor seconds so far."""
        return time.process_time() - self.begun - self.away

    def look(self) -> None:
        """Evaluate held-out cells without counting the time."""
        at, now = self.seconds(), time.process_time()
        parts = self.held_out()
        self.curve.append((at, sum(parts[name] for name in PARTS)))
        self.away += time.process_time() - now


@dataclass
class Data:
    """A data set and its split."""

    adata: AnnData
    cells: CellData
    populations: Population
    split: Split

    @classmethod
    def of(cls, adata: AnnData, options: argparse.Namespace, seed: int) -> Data:
        """Set the data up, and split both populations."""
        ContrastiveVI.setup_anndata(
            adata, condition_key=options.condition_key, background=options.background
        )
        cells = Setup.of(adata).extract(adata)
        both = Population(np.flatnonzero(cells.condition == 0), np.flatnonzero(cells.condition))
        rng = np.random.default_rng(seed)
        split = split_populations(both.background, both.target, rng=rng)
        return cls(adata, cells, both, split)

    def held_out(self, vae: ContrastiveVAE) -> dict[str, float]:
        """Parts of the negative ELBO per pair of held-out cells."""
        return evaluate(vae, self.cells, self.split.validation, 512, "cpu")


def fit_scvi_tools(data: Data, epochs: int | None, seed: int) -> tuple[ContrastiveVI, Clock]:
    """Run scvi-tools' default training; return a model of ours with its weights."""
    import scvi  # noqa: F401  # here, so that its import is not timed
    from lightning.pytorch.callbacks import Callback

    model = ContrastiveVI(data.adata)

    def held_out() -> dict[str, float]:
        weights = rename_scvi_weights(plan[0].module.state_dict(), latent_library=False)
        model.module.load_state_dict(weights, strict=False)
        return data.held_out(model.module)

    plan: list[Any] = []
    clock = Clock(held_out)

    class Look(Callback):
        """Evaluates the model after an epoch."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            plan[:] = [pl_module]
            clock.look()

    train_reference(data.adata, data.split, data.populations, epochs, seed, [Look()])
    return model, clock


def fit_ours(
    data: Data, setting: Setting, epochs: int | None, seed: int
) -> tuple[ContrastiveVI, Clock]:
    """Train our model with a setting."""
    pyro.set_rng_seed(seed)
    model = ContrastiveVI(data.adata, penalties=setting.make_penalties(), **setting.model)
    train = data.split.train
    steps = -(-max(len(train.background), len(train.target)) // BATCH_SIZE)
    if epochs is None and setting.steps is not None:
        epochs = round(setting.steps / steps)
    clock = Clock(partial(data.held_out, model.module))

    class Look(History):
        """Evaluates the model after an epoch."""

        def add_epoch(self, values: Mapping[str, float]) -> None:
            clock.look()
            super().add_epoch(values)

    stopping = EarlyStopping("elbo_validation", 45, 0.0) if setting.early_stopping else None
    fit(
        model.module,
        data.cells,
        data.split,
        TrainingPlan.from_kwargs(dict(setting.plan), setting.schedule),
        Look(),
        RunSettings(
            epochs or default_max_epochs(len(data.cells), setting.schedule, steps),
            BATCH_SIZE,
            stopping,
            check_val_every_n_epoch=1 if stopping else None,
            progress_bar=False,
        ),
        fabric=one_device("cpu", 1),
        rng=np.random.default_rng(seed),
    )
    if stopping is not None:
        clock.look()
    model.is_trained = True
    return model, clock
