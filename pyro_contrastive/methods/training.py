"""Fit the model, and keep the history of training."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive._tools.threads import one_thread
from pyro_contrastive._tools.torch_tools import numpy_rng, seeded
from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.indices import populations
from pyro_contrastive.density.heads import bfloat16_products
from pyro_contrastive.methods.base import ModelBase
from pyro_contrastive.methods.checkpointing import ARGUMENTS as CHECKPOINT_ARGUMENTS
from pyro_contrastive.methods.checkpointing import (
    CheckpointRequest,
    TrainingCheckpoints,
)
from pyro_contrastive.training.arguments import (
    check_interval,
    refuse_sparse,
    refuse_unknown,
)
from pyro_contrastive.training.calls import TrainCall
from pyro_contrastive.training.history import EarlyStopping, FitResult
from pyro_contrastive.training.plan import TrainingPlan, default_max_epochs
from pyro_contrastive.training.splits import Indices, SplitSettings, split_cells
from pyro_contrastive.training.trained_cells import TrainedCells


def _check_agreement(
    condition: NDArray[np.int64], background: NDArray[np.int64], target: NDArray[np.int64]
) -> None:
    """Refuse indices that contradict the condition, which every other method uses."""
    for name, cells, wrong in (
        ("background_indices", background, condition[background] != BACKGROUND),
        ("target_indices", target, condition[target] == BACKGROUND),
    ):
        if wrong.any():
            msg = (
                f"{name} has {int(wrong.sum())} cells whose condition says otherwise, e.g. cell "
                f"{cells[wrong][0]}. Set up the data with the condition you mean, or without "
                "condition_key."
            )
            raise ValueError(msg)


def _max_epochs(
    cells: tuple[Indices, Indices], schedule: str, train_size: float | None, batch_size: int
) -> int:
    """Return the number of epochs of a schedule for these populations."""
    n_train = (train_size or 0.9) * max(map(len, cells))
    steps_per_epoch = math.ceil(n_train / max(batch_size, 1))
    return default_max_epochs(sum(map(len, cells)), schedule, max(steps_per_epoch, 1))


def _stopping(given: Mapping[str, Any], max_epochs: int) -> tuple[EarlyStopping | None, int | None]:
    """Return when to stop early, and how often to check, for these arguments of ``train``."""
    wanted, every = given["early_stopping"], given["check_val_every_n_epoch"]
    is_optional = wanted is None
    if is_optional:
        wanted = given["schedule"] == "fast" and every is not None
    if not wanted:
        return None, every
    stopping = EarlyStopping(
        given["early_stopping_monitor"],
        given["early_stopping_patience"],
        given["early_stopping_min_delta"],
        mode=given["early_stopping_mode"],
        warmup_epochs=given["early_stopping_warmup_epochs"],
        is_optional=is_optional,
    )
    every = 1 if every is None else every  # as in scvi-tools
    if not is_optional:
        check_interval(every, max_epochs)
    return stopping, every


class TrainingMethods(ModelBase):
    """Mixin of :class:`ContrastiveVI`: training and its history."""

    @one_thread()  # a second call continues from this one
    def train(
        self,
        background_indices: ArrayLike | None = None,
        target_indices: ArrayLike | None = None,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int | None = 128,
        early_stopping: bool | None = None,
        datasplitter_kwargs: dict[str, Any] | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        *,
        early_stopping_monitor: str = "elbo_validation",
        early_stopping_patience: int = 45,
        early_stopping_min_delta: float = 0.0,
        early_stopping_mode: Literal["min", "max"] = "min",
        early_stopping_warmup_epochs: int = 0,
        check_val_every_n_epoch: int | None = 1,
        enable_progress_bar: bool = True,
        schedule: str = "reference",
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
        num_nodes: int = 1,
        seed: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every_n_epochs: int | None = None,
        checkpoint_every_n_minutes: float = 10.0,
        resume: str | os.PathLike[str] | None = None,
        **trainer_kwargs: Any,
    ) -> FitResult:
        """Fit the model. A second call continues from the present weights.

        As in scvi-tools, a second call makes a new optimiser, and the KL warm-up starts again
        (``plan_kwargs={"min_kl_weight": 1}`` keeps the KL weight at 1).

        Parameters
        ----------
        background_indices, target_indices
            Indices (or boolean masks) of background and target cells, as `indices` of
            :meth:`get_latent_representation`. Default: from the condition given to
            :meth:`setup_anndata`.
        max_epochs
            Number of passes over the larger population; default 400 up to 20,000 cells, then fewer
            (see `schedule`).
        accelerator, devices
            As in Lightning; ``accelerator="auto"`` uses CUDA if available. ``devices`` is how many
            devices, on each node, or a list of their indices; -1: all; ``"auto"``: one, or as many
            as ``torchrun`` has started processes for. On a CPU, a device is a process. See Notes.
        train_size, validation_size
            Fractions of each population to train on and to hold out; default 0.9 and 0.1.
            Held-out quantities are recorded when both populations have held-out cells.
        shuffle_set_split
            Shuffle the cells before splitting them.
        load_sparse_tensor
            Must be ``False``: counts are sparse in host memory, and mini-batches are dense.
        batch_size
            Maximum number of cells of each population in a step; ``None``: 128.
        early_stopping
            Stop when `early_stopping_monitor` has not improved by `early_stopping_min_delta` for
            `early_stopping_patience` checks, and put back the weights of the best epoch. Checks
            begin after the KL warm-up: before, KL divergences and penalties do not have their full
            weight, and an epoch could seem best for lack of a penalty. Default: as in scvi-tools
            not, but with the fast schedule yes, where cells of both populations are held out and
            `check_val_every_n_epoch` is not ``None``. A model that has overfitted finds effects
            in cells that were not treated at all.
        datasplitter_kwargs
            ``{"external_indexing": [train, validation, test]}``: the split itself, as indices or
            masks of cells of both populations; the latter two may be left out. No other key is
            accepted.
        plan_kwargs
            See :class:`~pyro_contrastive.training.TrainingPlan`: ``lr``, ``n_epochs_kl_warmup`` ...
        early_stopping_monitor, early_stopping_patience, early_stopping_min_delta
            See `early_stopping`.
        early_stopping_mode
            Whether smaller (``"min"``) or larger (``"max"``) values of `early_stopping_monitor` are
            better.
        early_stopping_warmup_epochs
            Number of epochs at the start that early stopping does not check, if it is more than
            those of the KL warm-up.
        check_val_every_n_epoch
            How often, in epochs, to compute the held-out ELBO and check for early stopping;
            ``None``: never.
        enable_progress_bar
            Show a progress bar.
        schedule
            Defaults of `max_epochs` and `plan_kwargs`. ``"reference"``: the settings of scvi-tools,
            with the KL warm-up over a quarter of the run. ``"fast"``: scale and dispersion of each
            gene start from its mean and variance over the training cells
            (:meth:`Likelihood.start_from`; in the first training only), some counts are hidden from
            the encoders so that they overfit less (``molecule_dropout`` of the plan), the learning
            rate rises to 0.015 and falls again, Adam has its usual ``eps``, the KL warm-up is one
            epoch, and there are about 500 steps in all (at least 10 and at most 80 epochs, because
            a model of few cells overfits soon; above 800,000 cells as many epochs as with
            "reference", but at least 2). At the end the weights of the epoch with the best
            held-out ELBO are put back (`early_stopping`). It reaches a better held-out ELBO many
            times sooner. Without penalties it leaves more shared variation in the salient latent,
            so use it with ``ContrastiveVI.from_preset(adata, "separated")``.
        precision
            ``"bf16-mixed"``: the matrix products of the decoder's heads, which are the largest,
            round their factors to bfloat16; everything else is in single precision. Faster where
            the processor or GPU multiplies in bfloat16, slower elsewhere; ``benchmarks/README.md``
            has the effect on the ELBO.
        num_nodes
            Number of machines, on each of which the script runs.
        seed
            Seed of the split, the order of the cells and all noise; default: torch's global state
            (``pyro.set_rng_seed``). On a CPU the same seed gives the same result for models with
            the same initial weights, and with the same number of threads
            (``torch.set_num_threads``): two threads add numbers up in another order than one, a
            difference that begins at 4e-7 (after 5 epochs) and grows (0.016 after 60). Initial
            weights are drawn when the model is made: to reproduce them, set
            ``pyro_contrastive.settings.seed`` before.
        checkpoint
            Folder for checkpoints, from which `resume` continues this run after the process was
            killed. They are written at the ends of epochs, each in one step, and the last two are
            kept, also after the run. A checkpoint that cannot be written (a full disk) costs a
            warning. Of several processes the first one writes. Default: none are written.
        checkpoint_every_n_epochs, checkpoint_every_n_minutes
            Write one after every so many epochs; by default, at the end of the first epoch after
            every 10 minutes. There is also one before the first epoch and one after the last.
        resume
            Folder with checkpoints of a run to continue, which are then also written there, unless
            `checkpoint` is given. Make the model as before (its weights do not matter; load it if
            it had been trained before that run), and give the same data and arguments: a
            checkpoint of anything else is refused. On a CPU the result is that of the uninterrupted
            run, bit for bit, with the same versions of the packages and number of threads. Several
            processes must be as many as before, and all must see the folder. What
            parts of your own keep outside parameters, buffers and the global random numbers is not
            in a checkpoint. A run that had ended is put back without training. Counts on disk have
            to be there again, in files with the same order of cells and chunks of the same size.
        **trainer_kwargs
            Not accepted; for an argument of Lightning's Trainer the error says what to use instead.

        Returns
        -------
        How the run ended: epochs, seconds, whether it stopped early or was interrupted.

        Raises
        ------
        ValueError
            If it is not known which cells are background and target, or they overlap; if a number
            is out of range; if early stopping watches a quantity that is not recorded; if the
            checkpoint to continue from is of another model, of other data, of other settings or of
            another version of the library.
        FileNotFoundError, InvalidFileError
            If there is no checkpoint to continue from, or all are damaged.
        FileExistsError
            If `checkpoint` holds those of a run that did not end, and `resume` is not given.
        TypeError
            If there is an unknown argument.
        NonFiniteLossError
            If the loss becomes NaN or infinite; names the site.
        ProcessesError
            With several processes: if they differ in data, split, model or arguments, or one fails.

        Notes
        -----
        Several devices or nodes: a process for each trains on its share of every step, and all of
        them take the same step, by the average of their gradients. Run the script by ``python
        script.py``, which then starts itself once more for every further device, or by
        ``torchrun``; not from a notebook. The whole script runs in every process: all of them need
        the data, and make the same model. The first one's initial weights count, it shows the
        progress, and only there does :meth:`save` write. Guard what else writes files.

        * `batch_size` is that of each process: two with 128 take the steps of one with 256, in half
          as many steps per epoch. Each draws noise of its own. Differences to one process with
          twice the cells: batch normalisation uses the cells of each process in training, and
          penalties on pairs of cells (:class:`MMD`, :class:`HSIC`) compare cells of one process.
          With 64 cells or more per process neither changes the result much, with 32 they do:
          do not make `batch_size` small because there are many processes.
        * Held-out quantities are averaged over processes, and decisions, such as early stopping,
          are those of the first process.
        * An error in one process ends all with an error that quotes it, at once where processes
          exchange tensors on CPUs (gloo). A process that does not answer does so after 5 minutes;
          on GPUs (NCCL) any failure may take that long.
        * Ctrl-C ends all after the same step, and keeps what was learned.
        """
        check_arguments(locals())
        given = locals()
        names = list(signature(self.train).parameters)[:-1]
        refuse_unknown(trainer_kwargs, names)
        refuse_sparse(load_sparse_tensor)
        # Lightning takes seconds to import, and only training needs it.
        from pyro_contrastive.training.devices import fabric_for  # noqa: PLC0415
        from pyro_contrastive.training.fit import fit  # noqa: PLC0415
        from pyro_contrastive.training.processes import shared_seed  # noqa: PLC0415
        from pyro_contrastive.training.run import RunSettings  # noqa: PLC0415

        plan = TrainingPlan.from_kwargs(plan_kwargs, schedule)
        if self.is_trained or self._history.n_epochs:  # continue, also after a run that failed
            plan = replace(plan, start_from_data=False)
        else:
            self._untrained_module = copy.deepcopy(self.module)
        batch_size = 128 if batch_size is None else batch_size
        request = CheckpointRequest.of(*(given[name] for name in CHECKPOINT_ARGUMENTS))
        fabric = fabric_for(accelerator, devices, num_nodes)
        repeated = [name for name in names if name not in CHECKPOINT_ARGUMENTS]
        call = TrainCall.now({name: given[name] for name in repeated}, fabric.device.type)
        adata = self._adata(None)
        data, cells = self._data_of_populations(adata, background_indices, target_indices)
        if max_epochs is None:
            cells_per_step = batch_size * fabric.world_size
            max_epochs = _max_epochs(cells, schedule, train_size, cells_per_step)
        stopping, check_every = _stopping(given, max_epochs)
        split_settings = SplitSettings(
            train_size, validation_size, shuffle_set_split, datasplitter_kwargs or {}
        )
        checkpoints = None
        if request is not None:
            n_processes = fabric.world_size
            checkpoints = TrainingCheckpoints(
                self, request, call, data, adata.obs_names, n_processes
            )
            call = checkpoints.start_random()
        with seeded(shared_seed(fabric, seed)), bfloat16_products(precision == "bf16-mixed"):
            rng = numpy_rng()
            split = split_cells(*cells, split_settings, adata.obs_names, rng)
            settings = RunSettings(
                max_epochs,
                batch_size,
                stopping,
                check_every,
                enable_progress_bar,
                adata.obs_names,
            )
            result = fit(
                *(self.module, data, split, plan, self._history, settings),
                fabric=fabric,
                rng=rng,
                checkpoints=None if checkpoints is None else checkpoints.of_split(split),
            )
        self.is_trained = True
        self._runs = (*self._runs, call)
        self._stored_posteriors = None  # of the weights before this run
        self._trained_cells = TrainedCells.of(split, adata.obs_names, data.totals())
        if background_indices is not None and self.setup.condition_key is None:
            self._note_populations(adata.obs_names, data, np.concatenate(cells))
        return result

    def _data_of_populations(
        self,
        adata: AnnData,
        background_indices: ArrayLike | None,
        target_indices: ArrayLike | None,
    ) -> tuple[CellData, tuple[Indices, Indices]]:
        """Return the data, and the indices of their background and of their target cells."""
        data = self._extract(adata, with_condition=True)
        cells = populations(data.condition, background_indices, target_indices, adata.obs_names)
        if background_indices is not None and data.condition is not None:
            _check_agreement(data.condition, *cells)
        return data.with_condition(*cells), cells

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """Losses by epoch: ``{name: frame with one column, indexed by epoch}``, counted from 0.

        As in scvi-tools: ``elbo_train``, ``elbo_validation``, ``reconstruction_loss_*``,
        ``kl_local_*`` and ``kl_global_*`` (of parameters that all cells share; 0 for most models):
        the negative ELBO and its parts per background/target pair, without the KL weight;
        ``train_loss`` (also as ``train_loss_epoch``) and ``validation_loss`` with the KL weight and
        penalties; ``kl_weight`` at the end of the epoch. In addition ``kl_z_*``, ``kl_s_*``; each
        penalty's value by its name (``wasserstein_*``: the mean over background cells, where
        scvi-tools has ``wasserstein_loss_sum_*``, a sum that grows with the mini-batch); with
        several treatments ``elbo_<condition>_validation``; ``restored``, if early stopping put the
        weights of an epoch back, with 1 at that epoch; and, if the model observes several sites,
        ``reconstruction_loss_<site>_*`` for each, with their sum in ``reconstruction_loss_*``.
        """
        return self._history.frames()

    def _note_populations(self, names: pd.Index, data: CellData, cells: NDArray[np.int64]) -> None:
        """Remember by name which cells were given to `train` as background and as target.

        Expression and differential expression need that. It is not possible if names repeat.
        """
        if not names.is_unique:
            warnings.warn(
                "Cell names repeat, so the model cannot remember which cells are background: "
                "expression decodes all of them with the salient latent. Call "
                "adata.obs_names_make_unique(), or set up the data with condition_key=.",
                UserWarning,
                stacklevel=4,
            )
            return
        assert data.condition is not None  # set by `train`
        self._conditions = pd.DataFrame(
            {"code": data.condition[cells], "total": data.totals(cells)},
            index=names[cells],
        )
