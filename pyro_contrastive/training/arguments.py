"""Checks of the arguments of ``train``, with messages that say what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches

from pyro_contrastive.training.plan import TrainingPlan

_NO_TRAINER = "training is a plain loop, without a Lightning Trainer"
LIGHTNING = {
    "accumulate_grad_batches": "batch_size= makes the mini-batches larger",
    "barebones": _NO_TRAINER,
    "benchmark": "set torch.backends.cudnn.benchmark yourself",
    "callbacks": f"{_NO_TRAINER}; to inspect the model in between, train for some epochs and call "
    "train() again, which continues",
    "default_root_dir": "checkpoint= is the folder for checkpoints",
    "detect_anomaly": "a loss that is not finite raises an error that names the site",
    "deterministic": "seed= reproduces a result on a CPU",
    "ckpt_path": "resume= continues a run from its checkpoints",
    "enable_checkpointing": "checkpoint= is a folder for checkpoints, resume= continues from them; "
    "early_stopping=True restores the best weights",
    "enable_model_summary": "print(model.module) shows the networks",
    "fast_dev_run": "max_epochs=1",
    "gradient_clip_algorithm": "gradients are clipped by the norm of all of them together",
    "gradient_clip_val": "a gradient far larger than usual is always clipped; if the loss "
    'diverges, lower the learning rate, plan_kwargs={"lr": ...}',
    "learning_rate": 'plan_kwargs={"lr": ...}',
    "limit_train_batches": "an epoch is a pass over the larger population; train_size= sets how "
    "many cells train",
    "limit_val_batches": "check_val_every_n_epoch= sets how often held-out cells are evaluated",
    "log_every_n_steps": "model.history has every epoch",
    "logger": "model.history has what was recorded, by epoch",
    "log_save_dir": "model.history has what was recorded, by epoch",
    "max_steps": "max_epochs=, of ceil(cells of the larger population / batch_size) steps each",
    "max_time": "Ctrl-C ends training and keeps what was learned",
    "min_epochs": "early_stopping_warmup_epochs= delays early stopping",
    "num_sanity_val_steps": "model and guide are always checked before the first step",
    "overfit_batches": _NO_TRAINER,
    "plugins": _NO_TRAINER,
    "profiler": "use torch.profiler.profile() around train()",
    "reload_dataloaders_every_n_epochs": _NO_TRAINER,
    "simple_progress_bar": "enable_progress_bar= shows or hides the bar",
    "strategy": "devices= and num_nodes= choose the processes; their gradients are averaged",
    "sync_batchnorm": "with several devices each uses the statistics of its own cells",
    "use_gpu": "accelerator= and devices= choose the device",
    "val_check_interval": "use check_val_every_n_epoch=, in epochs",
}
"""What to use instead of an argument of Lightning's Trainer, or of an older scvi-tools."""


def refuse_sparse(load_sparse_tensor: bool) -> None:
    """Refuse sparse mini-batches.

    Raises
    ------
    ValueError
        If they are requested.
    """
    if load_sparse_tensor:
        msg = "load_sparse_tensor=True is not supported: mini-batches are dense tensors."
        raise ValueError(msg)


def check_interval(every: int, max_epochs: int) -> None:
    """Refuse to evaluate held-out cells less than once, if early stopping depends on it."""
    if every > max_epochs:
        msg = (
            f"early_stopping checks every {every} epochs, and there are only {max_epochs}: it "
            "would never check. Lower check_val_every_n_epoch."
        )
        raise ValueError(msg)


def refuse_unknown(given: Mapping[str, object], known: list[str]) -> None:
    """Refuse arguments that ``train`` does not have, saying what to use instead.

    Parameters
    ----------
    given
        The arguments.
    known
        Names of the arguments it has.

    Raises
    ------
    TypeError
        If there are any.
    """
    if not given:
        return
    reasons = "; ".join(f"{name}: {_instead(name, known)}" for name in given)
    msg = f"train() does not take {', '.join(given)}. {reasons}."
    raise TypeError(msg)


def _instead(name: str, known: list[str]) -> str:
    if name in LIGHTNING:
        return LIGHTNING[name]
    if name in {field.name for field in fields(TrainingPlan)}:
        return f'it belongs to the plan, plan_kwargs={{"{name}": ...}}'
    similar = get_close_matches(name, known, n=1)
    return f"did you mean {similar[0]}=?" if similar else f"it takes {', '.join(known)}"


def refuse_never_checking(max_epochs: int, warmup_epochs: int, *, is_warming_up: bool) -> None:
    """Raise an error for early stopping that would not check any epoch, naming the reason.

    Parameters
    ----------
    max_epochs
        Length of the run.
    warmup_epochs
        ``early_stopping_warmup_epochs``, if these leave no epoch to check; otherwise 0.
    is_warming_up
        Whether the KL warm-up lasts until the last epoch. If neither is the reason, it is the rise
        of the learning rate.

    Raises
    ------
    ValueError
        Always.
    """
    if warmup_epochs:
        msg = (
            f"early_stopping_warmup_epochs={warmup_epochs} leaves early stopping no epoch to check "
            f"in a run of {max_epochs}."
        )
        raise ValueError(msg)
    what, how = "rise of the learning rate", "cycle_rise"
    if is_warming_up:
        what, how = "KL warm-up", "n_epochs_kl_warmup, n_steps_kl_warmup"
    msg = (
        f"Early stopping checks epochs after the {what}, which does not end before the last of "
        f"{max_epochs} epochs: it would never check. Shorten it (plan_kwargs: {how})."
    )
    raise ValueError(msg)
