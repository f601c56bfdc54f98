"""How often counts are hidden from the encoders during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pyro_contrastive.networks import MoleculeDropout

HIGHEST_RATE = 0.8
"""With few cells; above it the latents of 1,500 cells with 2,000 genes became worse."""


def rate_for(n_genes: int, n_cells: int) -> float:
    """Rate of :class:`MoleculeDropout` for data of this size: ``sqrt(genes / cells)``, at most 0.8.

    The first layer of an encoder has a weight for each gene and hidden unit. The fewer cells there
    are to learn them from, the more the encoder learns of the counting noise of these very cells.
    The formula was found by experiment: see ``benchmarks/results/posterior_gap.md``.
    """
    return min(HIGHEST_RATE, (n_genes / n_cells) ** 0.5)


@contextmanager
def hiding_counts(vae: nn.Module, rate: float) -> Iterator[None]:
    """Set the rate at which molecules are hidden; put the former back at the end."""
    before = {part: part.rate for part in vae.modules() if isinstance(part, MoleculeDropout)}
    try:
        for part in before:
            part.rate = rate
        yield
    finally:
        for part, former in before.items():
            part.rate = former


def can_hide(vae: nn.Module) -> bool:
    """Tell whether the guide has encoders from which counts can be hidden."""
    return any(isinstance(part, MoleculeDropout) for part in vae.modules())
