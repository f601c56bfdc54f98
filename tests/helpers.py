"""Small things several test files need."""

from __future__ import annotations

from typing import Any

import torch

from pyro_contrastive import CellBatch, ContrastiveVAE

N_GENES = 12


def make_batch(
    n_background: int = 5, n_target: int = 7, n_batch: int = 1, n_genes: int = N_GENES
) -> CellBatch:
    """Counts of a few cells, background first."""
    n_cells = n_background + n_target
    return CellBatch(
        condition=(torch.arange(n_cells) >= n_background).long(),
        x=torch.poisson(3 * torch.rand(n_cells, n_genes)),
        batch=torch.arange(n_cells) % n_batch,
    )


def make_vae(**kwargs: Any) -> ContrastiveVAE:
    """Make a small module; `latent_library=True` makes the library size latent."""
    if kwargs.pop("latent_library", False):
        size = max(kwargs.get("n_batch", 0), 1)
        kwargs |= {
            "use_observed_lib_size": False,
            "library_log_means": [3.0] * size,
            "library_log_vars": [0.3] * size,
        }
    small = {"n_input": N_GENES, "n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
    return ContrastiveVAE(**(small | kwargs))


def salient_kl(vae: ContrastiveVAE, batch: CellBatch) -> torch.Tensor:
    """KL(q(s | x) || N(0, I)) of every cell, by the textbook formula."""
    mean, variance = vae.guide.encode(batch)["s"]
    return 0.5 * (mean**2 + variance - 1 - variance.log()).sum(-1)
