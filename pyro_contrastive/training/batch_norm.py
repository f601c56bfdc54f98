"""Running statistics of batch normalisation that belong to the weights as they are now."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pyro import poutine
from torch import nn

from pyro_contrastive._tools.torch_tools import own_params, seeded
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.vae import ContrastiveVAE

N_BATCHES = 8
"""Mini-batches that the statistics are averaged over: of 256 cells each, they are some 2 % off."""


def refresh_statistics(vae: ContrastiveVAE, batches: Iterable[CellBatch]) -> None:
    """Replace running means and variances by averages over mini-batches, of the present weights.

    In training, batch normalisation takes mean and variance from the mini-batch; in evaluation it
    takes running averages of them, which lag behind where the weights move fast. How far depends
    on the input: counts of a million a cell have logarithms of 5 and more in every gene, and the
    least change of the weights shifts their sum. "Precise" statistics are computed afresh instead
    (Wu & Johnson, "Rethinking 'Batch' in BatchNorm", arXiv:2105.07576, 2021). Weights and random
    numbers stay as they are.

    Parameters
    ----------
    vae
        The module; in training mode afterwards if it was before.
    batches
        Training cells, both populations mixed as in training.
    """
    norms = [module for module in vae.modules() if isinstance(module, nn.BatchNorm1d)]
    before = [(norm.momentum, [b.clone() for b in norm.buffers()]) for norm in norms]
    was_training = vae.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all that comes
    vae.train()
    try:
        # The likelihood's heads, which cost the most, are evaluated only if they are looked at.
        with torch.no_grad(), seeded(0), own_params():
            for batch in batches:
                posterior = poutine.trace(vae.guide).get_trace(batch)
                poutine.replay(vae.model, posterior)(batch)
    finally:
        vae.train(was_training)
        for norm, (momentum, buffers) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not int(norm.num_batches_tracked or 0):  # no program has run it
                for buffer, value in zip(norm.buffers(), buffers, strict=True):
                    buffer.copy_(value)
