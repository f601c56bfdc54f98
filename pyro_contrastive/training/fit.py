"""The training loop."""

from __future__ import annotations

import logging
import time

import numpy as np
from lightning_fabric import Fabric

from pyro_contrastive.components.seen_cells import evenly
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.training.epochs import Checkpoints, Epochs, State
from pyro_contrastive.training.hidden_counts import hiding_counts
from pyro_contrastive.training.history import FitResult, History
from pyro_contrastive.training.plan import TrainingPlan
from pyro_contrastive.training.processes import ending_together
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
    checkpoints: Checkpoints | None = None,
) -> FitResult:
    """Train `vae` on the training cells of `split`, adding an epoch at a time to `history`.

    Ctrl-C ends the run and keeps what was learned. With early stopping the weights of the best
    epoch are put back at the end, however the run ends; otherwise, if the loss exploded and did not
    come down again, those of the last epoch before.

    Parameters
    ----------
    vae, data, split, plan, settings, fabric, rng
        See :class:`Run`.
    history
        Filled during training.
    checkpoints
        Where to write the state of the run between epochs, and a state to continue from. Default:
        nowhere.

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
    history.note_restored(None)
    _prepare(run, data, None if checkpoints is None else checkpoints.resumed)
    epochs = Epochs(run, history, begun)
    if checkpoints is not None and checkpoints.resumed is not None:
        epochs.restore(checkpoints.resumed)
    elif checkpoints is not None:
        epochs.keep(checkpoints, is_last=False)
    stopping = settings.early_stopping
    interrupted = False
    best = None
    try:
        with hiding_counts(vae, rate), run.processes.noting_interrupts():
            epochs.train(checkpoints)
    except KeyboardInterrupt:
        interrupted = True
        run.updates.check()  # so that what is kept is finite
        logger.warning("Interrupted after %d epochs; what was learned is kept.", epochs.n_done)
        run.refresh_batch_norm()
    else:
        run.refresh_batch_norm()
    finally:
        if stopping is not None and stopping.best_epoch is not None:
            stopping.restore_best(vae)
            best = stopping.best_epoch
        elif epochs.watch.put_back():
            best = epochs.watch.good_epoch
        history.note_restored(best)
        vae.eval()
        vae.objective.kl_weight = plan.max_kl_weight
    return FitResult(
        n_epochs=epochs.n_done,
        seconds=epochs.seconds,
        stopped_early=epochs.stopped,
        interrupted=interrupted,
        max_epochs=settings.max_epochs,
        best_epoch=best,
        reason=stopping.reason if stopping and epochs.stopped else "Ctrl-C" if interrupted else "",
    )


def _prepare(run: Run, data: CellData, resumed: State | None) -> None:
    """Initialise the likelihood, check model and settings, and remember some training cells."""
    if run.processes.size > 1:
        n_done = None if resumed is None else resumed["n_done"]
        continued = {"the checkpoint that they continue from": f"after {n_done} epochs"}
        run.processes.refuse_differences(digests(run, data) | continued)
        run.processes.give_those_of_first([*run.vae.parameters(), *run.vae.buffers()])
        run.processes.draw_own_noise()
    train = np.concatenate([run.split.train.background, run.split.train.target])
    if run.plan.start_from_data:
        run.vae.model.likelihood.start_from(data.gene_summary(train))
    run.check()
    run.vae.seen_cells.note(data.cells(evenly(train), dense=False))
