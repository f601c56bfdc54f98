"""Arguments of ``train`` that are refused in words, before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from operator import index

from pyro_contrastive.training.plan import TrainingPlan

_NO_TRAINER = "there is no Lightning Trainer here, but a plain loop"
LIGHTNING = {
    "accumulate_grad_batches": "batch_size= makes the mini-batches larger",
    "barebones": _NO_TRAINER,
    "benchmark": "torch.backends.cudnn.benchmark is torch's own",
    "callbacks": f"{_NO_TRAINER}; call train() again to go on from where it stopped, and look at "
    "the model in between",
    "default_root_dir": "nothing is written while training: model.save(folder)",
    "detect_anomaly": "a loss that is not finite is an error that says at which site",
    "deterministic": "seed= gives the same result again on a CPU",
    "enable_checkpointing": "nothing is written while training: model.save(folder); "
    "early_stopping=True puts back the best weights",
    "enable_model_summary": "print(model.module) shows the networks",
    "fast_dev_run": "max_epochs=1",
    "gradient_clip_algorithm": "gradients are not clipped; see gradient_clip_val",
    "gradient_clip_val": "gradients are not clipped; a loss that is not finite is an error, and a "
    'lower learning rate, plan_kwargs={"lr": ...}, is what helps',
    "learning_rate": 'plan_kwargs={"lr": ...}',
    "limit_train_batches": "an epoch is a pass over the larger population; train_size= takes fewer "
    "cells",
    "limit_val_batches": "check_val_every_n_epoch= looks at the held-out cells less often",
    "log_every_n_steps": "model.history has every epoch",
    "logger": "model.history holds what was recorded, by epoch",
    "log_save_dir": "model.history holds what was recorded, by epoch",
    "max_steps": "max_epochs=, of ceil(cells of the larger population / batch_size) steps each",
    "max_time": "Ctrl-C ends a run and keeps what was learned",
    "min_epochs": "early_stopping_warmup_epochs= keeps early stopping from looking before",
    "num_nodes": "training uses one device",
    "num_sanity_val_steps": "model and guide are always checked before the first step",
    "overfit_batches": _NO_TRAINER,
    "plugins": _NO_TRAINER,
    "profiler": "torch.profiler.profile() around train() does it",
    "reload_dataloaders_every_n_epochs": _NO_TRAINER,
    "simple_progress_bar": "enable_progress_bar= shows the bar or not",
    "strategy": "training uses one device: accelerator=, devices=",
    "sync_batchnorm": "training uses one device",
    "use_gpu": "accelerator= and devices= choose the device",
    "val_check_interval": "check_val_every_n_epoch=, in epochs",
}
"""What stands here for an argument of Lightning's Trainer, or for one that scvi-tools had."""


def check_whole(**numbers: object) -> None:
    """Refuse what should be a whole number and is none; ``None`` is let through.

    Raises
    ------
    ValueError
        If one is not; numbers out of range are refused where they are used.
    """
    for name, number in numbers.items():
        if number is None:
            continue
        try:
            index(number)  # type: ignore[arg-type]
        except TypeError:
            msg = f"{name} must be a whole number, such as 10, not {number!r}."
            raise ValueError(msg) from None


def check_modes(*, load_sparse_tensor: bool, precision: str) -> None:
    """Refuse sparse mini-batches, and a precision there is not.

    Raises
    ------
    ValueError
        If one of them is asked for.
    """
    if load_sparse_tensor:
        msg = "load_sparse_tensor=True is not supported: mini-batches are dense tensors."
        raise ValueError(msg)
    if precision not in {"32-true", "bf16-mixed"}:
        msg = f"precision must be '32-true' or 'bf16-mixed', not {precision!r}."
        raise ValueError(msg)


def check_looks(every: int, max_epochs: int) -> None:
    """Refuse early stopping that would never look."""
    if every > max_epochs:
        msg = (
            f"early_stopping looks every {every} epochs, and there are only {max_epochs}: it would "
            "never look. Lower check_val_every_n_epoch."
        )
        raise ValueError(msg)


def refuse_unknown(given: Mapping[str, object], known: list[str]) -> None:
    """Refuse arguments that ``train`` does not have, saying what stands in their place.

    Parameters
    ----------
    given
        The arguments.
    known
        Names of those it has.

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
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}=?" if near else f"it takes {', '.join(known)}"


def refuse_never_looking(max_epochs: int, warmup_epochs: int, *, is_warming_up: bool) -> None:
    """Refuse early stopping that would look at no epoch of a run; say what is in its way.

    Parameters
    ----------
    max_epochs
        Length of the run.
    warmup_epochs
        ``early_stopping_warmup_epochs``, if that leaves it nothing to look at; else 0.
    is_warming_up
        Whether the KL warm-up lasts until the last epoch; if neither, the learning rate rises.

    Raises
    ------
    ValueError
        Always.
    """
    if warmup_epochs:
        msg = (
            f"early_stopping_warmup_epochs={warmup_epochs} leaves early stopping none of the "
            f"{max_epochs} epochs to look at."
        )
        raise ValueError(msg)
    what, how = "rise of the learning rate", "cycle_rise"
    if is_warming_up:
        what, how = "KL warm-up", "n_epochs_kl_warmup, n_steps_kl_warmup"
    msg = (
        f"Early stopping looks at epochs after the {what}, which does not end before the last of "
        f"{max_epochs} epochs: it would never look. Shorten it (plan_kwargs: {how})."
    )
    raise ValueError(msg)
