"""The training loop."""

from __future__ import annotations

import logging
import time

import numpy as np
import pyro
from lightning_fabric import Fabric

from pyro_contrastive._tools.torch_tools import own_params, reused_memory
from pyro_contrastive.components.seen_cells import evenly
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.training.finite import no_nan_warnings
from pyro_contrastive.training.hidden_counts import hiding_counts
from pyro_contrastive.training.history import FitResult, History
from pyro_contrastive.training.loss_watch import LossWatch
from pyro_contrastive.training.plan import TrainingPlan
from pyro_contrastive.training.processes import ending_together
from pyro_contrastive.training.progress import EpochBar
from pyro_contrastive.training.run import Run, RunSettings
from pyro_contrastive.training.same_everywhere import digests
from pyro_contrastive.training.splits import Split
from pyro_contrastive.vae import ContrastiveVAE

logger = logging.getLogger(__name__)


@ending_together
def fit(
    vae: ContrastiveVAE,
    data: CellData,
    split: Split,
    plan: TrainingPlan,
    history: History,
    settings: RunSettings,
    *,
    fabric: Fabric,
    rng: np.random.Generator,
) -> FitResult:
    """Train `vae` on the training cells of `split`, adding an epoch at a time to `history`.

    Ctrl-C ends the run and keeps what was learned. With early stopping the weights of the best
    epoch are put back at the end, however the run ends.

    Parameters
    ----------
    vae, data, split, plan, settings, fabric, rng
        See :class:`Run`.
    history
        Filled during training.

    Raises
    ------
    ValueError
        If a number is out of range, or early stopping watches a quantity that is not recorded, or
        would never check it.
    NonFiniteLossError
        If the loss becomes NaN or infinite; names the site where that happened.
    ProcessesError
        If one of several processes fails, or they have different data, models or settings.
    """
    begun = time.perf_counter()
    run = Run(vae, data, split, plan, settings, fabric=fabric, rng=rng)
    rate = run.molecule_dropout
    _prepare(run, data)
    n_before = history.n_epochs
    history.note_restored(None)
    stopping = settings.early_stopping
    stopped = interrupted = False
    try:
        with hiding_counts(vae, rate), run.processes.noting_interrupts():
            stopped = _run_epochs(run, history)
    except KeyboardInterrupt:
        interrupted = True
        run.updates.check()  # so that what is kept is finite
        n_done = history.n_epochs - n_before
        logger.warning("Interrupted after %d epochs; what was learned is kept.", n_done)
        run.refresh_batch_norm()
    else:
        run.refresh_batch_norm()
    finally:
        if stopping is not None:
            stopping.restore_best(vae)
            history.note_restored(stopping.best_epoch)
        vae.eval()
        vae.objective.kl_weight = plan.max_kl_weight
    return FitResult(
        n_epochs=history.n_epochs - n_before,
        seconds=time.perf_counter() - begun,
        stopped_early=stopped,
        interrupted=interrupted,
        max_epochs=settings.max_epochs,
        best_epoch=stopping.best_epoch if stopping else None,
        reason=stopping.reason if stopping and stopped else "Ctrl-C" if interrupted else "",
    )


def _prepare(run: Run, data: CellData) -> None:
    """Initialise the likelihood, check model and settings, and remember some training cells."""
    if run.processes.size > 1:
        run.processes.refuse_differences(digests(run, data))
        run.processes.give_those_of_first([*run.vae.parameters(), *run.vae.buffers()])
        run.processes.draw_own_noise()
    train = np.concatenate([run.split.train.background, run.split.train.target])
    if run.plan.start_from_data:
        run.vae.model.likelihood.start_from(data.gene_summary(train))
    run.check()
    run.vae.seen_cells.note(data.cells(evenly(train), dense=False))


def _run_epochs(run: Run, history: History) -> bool:
    """Train epoch by epoch; return whether early stopping ended the run."""
    settings, stopping = run.settings, run.settings.early_stopping
    watch = LossWatch(run.plan.lr)
    shows_progress = settings.progress_bar and run.processes.is_first
    with (
        EpochBar(settings.max_epochs, show=shows_progress) as bar,
        pyro.validation_enabled(False),  # checked before training: see `check_programs`
        no_nan_warnings(),
        reused_memory(),
        own_params(),
    ):
        for epoch in range(settings.max_epochs):
            is_check = settings.is_check(epoch)
            values = run.train_epoch(epoch) | (run.validate() if is_check else {})
            values = run.processes.of_first(values)  # what follows from them is decided alike
            run.lower_learning_rate(values)
            history.add_epoch(values)
            if run.processes.is_first:
                watch.check(values, history.n_epochs - 1)
            bar.advance(values)
            if (
                stopping is not None
                and is_check
                and stopping.monitor in values
                and run.may_stop(stopping, epoch)
                and stopping.update(values, run.vae, history.n_epochs - 1)
            ):
                bar.stop_early(stopping.best_epoch)
                return True
    return False
