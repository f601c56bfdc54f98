"""Numbers and flags as users give them: what each argument may be, in one place and one wording.

An argument of the same name means the same in every method, so the table :data:`ARGUMENTS` says
once what it may be. A method checks its own with ``check_arguments(locals())`` as its first line.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np

LONGEST = 80
"""Longest value, in characters, that a message shows as it is."""
LARGEST_SEED = 2**32 - 1
"""What the generators of torch, NumPy and scikit-learn all take."""


class Rule(Protocol):
    """What an argument may be."""

    def problem(self, value: Any) -> str | None:
        """Return what the value must be, to go on "n_samples must be"; ``None`` if it is."""


@dataclass(frozen=True)
class Whole:
    """A whole number, of Python or NumPy; ``True`` and 1.0 are none."""

    at_least: int = 1
    at_most: int | None = None
    or_none: bool = False

    def problem(self, value: Any) -> str | None:
        """Return what the value must be, if it is not that."""
        if value is None and self.or_none:
            return None
        if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
            return "a whole number" + (" or None" if self.or_none else "")
        number = int(value)
        if number < self.at_least:
            return f"at least {self.at_least}"
        if self.at_most is not None and number > self.at_most:
            return f"at most {self.at_most:,}"
        return None


@dataclass(frozen=True)
class Number:
    """A finite number, of Python or NumPy, within bounds that are in the range if `closed`."""

    low: float = -math.inf
    high: float = math.inf
    low_closed: bool = True
    high_closed: bool = True
    or_none: bool = False

    def problem(self, value: Any) -> str | None:
        """Return what the value must be, if it is not that."""
        if value is None and self.or_none:
            return None
        if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
            return "a number" + (" or None" if self.or_none else "")
        if math.isinf(value):
            return "finite"
        number = float(value)
        is_above = self.low < number or (self.low_closed and number == self.low)
        is_below = number < self.high or (self.high_closed and number == self.high)
        return None if is_above and is_below else self._range()  # NaN is neither

    def _range(self) -> str:
        if math.isinf(self.low):
            return "a number"
        if math.isinf(self.high):
            return "positive" if not (self.low or self.low_closed) else f"at least {self.low:g}"
        if self.low_closed == self.high_closed:
            words = ("from", "to") if self.low_closed else ("between", "and")
            return f"{words[0]} {self.low:g} {words[1]} {self.high:g}"
        low, high = ("at least", "below") if self.low_closed else ("above", "at most")
        return f"{low} {self.low:g} and {high} {self.high:g}"


@dataclass(frozen=True)
class Flag:
    """``True`` or ``False``; 1 and 0 are the same in Python."""

    or_none: bool = False

    def problem(self, value: Any) -> str | None:
        """Return what the value must be, if it is not that."""
        if value is None and self.or_none:
            return None
        is_flag = isinstance(value, bool | np.bool_)
        if is_flag or (isinstance(value, Integral) and value in (0, 1)):
            return None
        return "True, False or None" if self.or_none else "True or False"


@dataclass(frozen=True)
class OneOf:
    """One of a few names."""

    names: tuple[str, ...]
    or_none: bool = False

    def problem(self, value: Any) -> str | None:
        """Return what the value must be, if it is not that."""
        if (value is None and self.or_none) or (isinstance(value, str) and value in self.names):
            return None
        *most, last = [*map(repr, self.names), *(["None"] if self.or_none else [])]
        return f"{', '.join(most)} or {last}"


@dataclass(frozen=True)
class Instance:
    """An object of a class, which the message calls by a name."""

    cls: type
    name: str
    or_none: bool = False

    def problem(self, value: Any) -> str | None:
        """Return what the value must be, if it is not that."""
        if isinstance(value, self.cls) or (value is None and self.or_none):
            return None
        return self.name + (" or None" if self.or_none else "")


_SHARE = Number(0, 1, low_closed=False, high_closed=False)
_SIMPLE: dict[Rule, str] = {
    Whole(): "n_samples n_mc_samples n_draws n_chains n_steps n_simulations n_permutations "
    "n_shuffles n_folds n_cells n_khat_cells early_stopping_patience m_permutation num_nodes",
    Whole(0): "nuts_cells calibration_cells n_warmup early_stopping_warmup_epochs lr_patience "
    "n_covariates n_batch n_continuous_cov fewest_counts max_plate_nesting",
    Whole(1, 10_000_000): "n_input",
    Whole(1, 100_000): "n_hidden n_components n_conditions num_particles",
    Whole(1, 10_000): "n_background_latent n_salient_latent n_latent rank",
    Whole(1, 100): "n_layers n_flows",
    Whole(or_none=True): "batch_size max_epochs check_val_every_n_epoch n_samples_overall "
    "checkpoint_every_n_epochs",
    Whole(0, or_none=True): "n_epochs_kl_warmup n_steps_kl_warmup",
    Whole(0, LARGEST_SEED, or_none=True): "seed",
    Whole(0, 100, or_none=True): "n_layers_decoder",
    Number(0, 1, high_closed=False): "dropout_rate",
    Number(0): "threshold weight wasserstein_penalty weight_decay lr_min lr_threshold "
    "min_kl_weight early_stopping_min_delta max_kl_weight lfc_threshold threshold_counts "
    "checkpoint_every_n_minutes",
    Number(0, low_closed=False): "lr eps sigma gain",
    Number(0, low_closed=False, or_none=True): "pseudocount pseudocounts",
    Number(0, or_none=True): "delta",
    Number(0, 1): "fdr_target",
    _SHARE: "interval cycle_rise lr_factor escape_scale min_scale",
    Number(0, 1, low_closed=False, or_none=True): "train_size",
    Number(0, 1, or_none=True): "validation_size",
    Flag(): "silent give_mean return_mean all_stats batch_correction by_stratum predictive prior "
    "sparse nuts shuffle_set_split load_sparse_tensor enable_progress_bar use_observed_lib_size "
    "annealed one_cycle reduce_lr_on_plateau precise_batch_norm start_from_data record_steps "
    "use_permutation log1p fill_missing overwrite save_anndata hide_state_registries "
    "vectorize_particles",
    Flag(or_none=True): "return_numpy early_stopping",
    Instance(str, "a name"): "early_stopping_monitor lr_scheduler_metric schedule",
    Instance(Mapping, "a dict", or_none=True): "plan_kwargs datasplitter_kwargs elbo_kwargs",
    OneOf(("auto", "cpu", "gpu", "cuda", "mps")): "accelerator",
    OneOf(("min", "max")): "early_stopping_mode",
    OneOf(("salient", "background")): "representation_kind",
    OneOf(("salient", "background"), or_none=True): "expression_type",
    OneOf(("scale", "mean")): "quantity",
    OneOf(("aggregate_posterior", "prior")): "salient_source",
    OneOf(("change", "vanilla", "means")): "mode",
    OneOf(("two", "three")): "test_mode",
    OneOf(("cell", "entry"), or_none=True): "log_likelihood",
    OneOf(("guide", "refined", "nuts")): "method",
    OneOf(("32-true", "bf16-mixed")): "precision",
}
ARGUMENTS: dict[str, Rule] = {
    name: rule for rule, names in _SIMPLE.items() for name in names.split()
}
"""What each argument of the library may be, by its name."""


def check_arguments(given: Mapping[str, Any], owner: str = "", **others: Rule) -> None:
    """Refuse numbers and flags of the wrong type or range.

    Parameters
    ----------
    given
        Arguments by name, such as ``locals()``. Names that are not in :data:`ARGUMENTS` are left
        alone: what they may be depends on the data.
    owner
        The class that they are arguments of, for the message, where it is not the model's.
    **others
        Rules for names that are not in :data:`ARGUMENTS`, or in place of those.

    Raises
    ------
    ValueError
        If a value is not what it may be; the error says what that is.
    """
    rules = ARGUMENTS | others
    for name, value in given.items():
        problem = rules[name].problem(value) if name in rules else None
        if problem is not None:
            prefix = f"{owner}: " if owner else ""
            msg = f"{prefix}{name} must be {problem}, not {shown(value)}."
            raise ValueError(msg)


def check_path(name: str, value: object) -> None:
    """Refuse anything but the path of a file or folder.

    Parameters
    ----------
    name
        Name of the argument.
    value
        Its value.

    Raises
    ------
    TypeError
        If it is neither a string nor a `Path`.
    """
    if not isinstance(value, str | os.PathLike):
        msg = f"{name} must be a path, a string or a pathlib.Path, not {shown(value)}."
        raise TypeError(msg)


def shown(value: object) -> str:
    """Return a value as a message shows it: itself if that is short, or else its type and shape."""
    text = repr(value)
    if len(text) <= LONGEST and "\n" not in text:
        return text
    shape = getattr(value, "shape", None)
    size = f" of shape {tuple(shape)}" if isinstance(shape, tuple) else ""
    return f"a {type(value).__name__}{size}"
