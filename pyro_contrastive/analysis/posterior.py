"""Latents of cells under a fitted model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.torch_tools import evaluating, seeded
from pyro_contrastive.vae import ContrastiveVAE

SITES = {"salient": "s", "background": "z"}
DEFAULT_BATCH_SIZE = 1024


def chunks(
    data: CellData,
    indices: NDArray[np.int64],
    batch_size: int | None,
    device: torch.device | str,
) -> Iterator[CellBatch]:
    """Yield the cells in order, `batch_size` at a time (default 1,024).

    Raises
    ------
    ValueError
        If `batch_size` is not positive.
    """
    size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    if size < 1:
        msg = f"batch_size must be at least 1, not {batch_size}."
        raise ValueError(msg)
    for start in range(0, len(indices), size):
        yield data.cells(indices[start : start + size], device)


def latent_representation(
    vae: ContrastiveVAE,
    data: CellData,
    indices: NDArray[np.int64],
    kind: str,
    *,
    give_mean: bool,
    batch_size: int | None,
) -> NDArray[np.float32]:
    """Posterior mean or one posterior draw of a latent, ``[cells, latents]``.

    Parameters
    ----------
    vae, data, indices
        The model, the data and which cells.
    kind
        ``"salient"`` or ``"background"``.
    give_mean
        Mean, or a draw (from torch's global random state).
    batch_size
        Cells at a time.

    Raises
    ------
    ValueError
        If `kind` is neither of the two.
    """
    if kind not in SITES:
        msg = f"representation_kind must be one of {list(SITES)}, not {kind!r}."
        raise ValueError(msg)
    device = next(vae.parameters()).device
    width = vae.n_salient_latent if kind == "salient" else vae.n_background_latent
    out = np.empty((len(indices), width), dtype=np.float32)
    row = 0
    # A mean needs no noise; the guide draws some all the same, which must not advance the state.
    with evaluating(vae), seeded(0 if give_mean else None):
        for batch in chunks(data, indices, batch_size, device):
            site = poutine.trace(vae.guide).get_trace(batch).nodes[SITES[kind]]
            latent = site["fn"].mean if give_mean else site["value"]
            out[row : row + len(batch)] = latent.cpu().numpy()
            row += len(batch)
    return out
