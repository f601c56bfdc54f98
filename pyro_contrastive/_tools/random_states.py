"""The states of all random numbers that a program may draw, to be put back later."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of the generators of torch, NumPy and Python: those that Pyro seeds.

    Parameters
    ----------
    device
        Device whose random numbers are included, in addition to those of the CPU.

    Returns
    -------
    Numbers, lists and tensors; :func:`set_random_states` takes them.
    """
    kind, words, *others = np.random.get_state()  # noqa: NPY002  # what user code draws from
    version, own, following = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, np.asarray(words).tolist(), *others],
        "python": [version, list(own), following],
    }


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Put back what :func:`random_states` returned; a state of a GPU only on a GPU."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    kind, words, *others = states["numpy"]
    np.random.set_state((kind, np.asarray(words, dtype=np.uint32), *others))  # noqa: NPY002
    version, own, following = states["python"]
    random.setstate((version, tuple(own), following))
