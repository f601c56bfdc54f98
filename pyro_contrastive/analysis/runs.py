"""Running model and guide on cells: what every analysis of a fitted model is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_contrastive.analysis.progress import counted
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.vae import ContrastiveVAE

DEFAULT_BATCH_SIZE = 1024
DRAWS_AT_A_TIME = 8192
"""Cells times posterior draws in memory, each with all genes, when no batch size is given."""


def device_of(vae: ContrastiveVAE) -> torch.device:
    """Return the device the parameters are on."""
    return next(vae.parameters()).device


def dtype_of(vae: ContrastiveVAE) -> torch.dtype:
    """Return the dtype of the parameters: float32, or what ``module.double()`` made of it."""
    return next(vae.parameters()).dtype


def chunks(
    vae: ContrastiveVAE,
    data: CellData,
    indices: NDArray[np.int64],
    batch_size: int | None,
    n_samples: int = 1,
) -> Iterator[CellBatch]:
    """Yield the cells in order, `batch_size` at a time, on the device of `vae` and in its dtype.

    By default 1,024, and fewer the more draws each is to have: what is in memory at a time does
    not grow with `n_samples`. Each counts as done, on the progress bar, when the next is asked for.

    Raises
    ------
    ValueError
        If `batch_size` is not positive.
    """
    most = min(DEFAULT_BATCH_SIZE, max(1, DRAWS_AT_A_TIME // max(n_samples, 1)))
    size = most if batch_size is None else batch_size
    if size < 1:
        msg = f"batch_size must be at least 1, not {batch_size}."
        raise ValueError(msg)
    with counted(len(indices)) as bar:
        for start in range(0, len(indices), size):
            batch = data.cells(indices[start : start + size], device_of(vae), dtype_of(vae))
            yield batch
            bar.advance(len(batch))


def draw_posterior(
    vae: ContrastiveVAE, batch: CellBatch, n_samples: int = 1, guide: Any = None
) -> Trace:
    """Run the guide; every draw has shape ``[n_samples, cells, latents]``, independent draws.

    Another program with the same sites may stand in for the guide of `vae`.
    """
    program = vae.guide if guide is None else guide
    return poutine.trace(_samples(n_samples)(program)).get_trace(batch)


def run_model(
    vae: ContrastiveVAE,
    batch: CellBatch,
    posterior: Trace,
    n_samples: int = 1,
    do: dict[str, Tensor] | None = None,
) -> Trace:
    """Run the model on draws of the posterior.

    Parameters
    ----------
    vae, batch
        The model and the cells; the batch may be a counterfactual one.
    posterior
        What :func:`draw_posterior` returned; sites it lacks are drawn from their prior.
    n_samples
        As given there.
    do
        Values to set sites to, whatever the posterior says (Pyro's do-operator).
    """
    model: Any = vae.model if do is None else poutine.do(vae.model, do)
    program = poutine.replay(_samples(n_samples)(model), trace=posterior)
    return poutine.trace(program).get_trace(batch)


def _samples(n_samples: int) -> Any:
    if n_samples < 1:
        msg = f"n_samples must be at least 1, not {n_samples}."
        raise ValueError(msg)
    return pyro.plate("samples", n_samples, dim=-2)
