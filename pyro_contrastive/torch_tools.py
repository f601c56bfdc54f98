"""Small contexts around torch: seeded randomness, evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyro
import torch
from torch import nn


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw torch's random numbers from `seed` inside, and leave the global state as it was.

    With ``None`` nothing happens: the global state (``pyro.set_rng_seed``) is used and advanced.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def numpy_rng() -> np.random.Generator:
    """Make a NumPy generator that follows from torch's global random state (and advances it)."""
    return np.random.default_rng(int(torch.randint(2**62, ()).item()))


@contextmanager
def own_params() -> Iterator[None]:
    """Keep what runs inside out of Pyro's global parameter store.

    Whatever is registered there is kept alive, a model and its GPU memory too, until the process
    ends.
    """
    with pyro.get_param_store().scope():
        yield


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Without gradients, dropout or updates of batch-norm statistics; restores the mode after."""
    was_training = [(m, m.training) for module in modules for m in module.modules()]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad(), own_params():
            yield
    finally:
        for m, mode in was_training:
            m.training = mode
