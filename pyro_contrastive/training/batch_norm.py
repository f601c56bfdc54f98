"""Statistics of batch normalisation that match the present weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pyro import poutine
from torch import nn

from pyro_contrastive._tools.torch_tools import own_params, seeded
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.training.hidden_counts import hiding_counts
from pyro_contrastive.vae import ContrastiveVAE

N_BATCHES = 8
"""Mini-batches to average over; with 256 cells each, the statistics are accurate to about 2 %."""


def refresh_statistics(vae: ContrastiveVAE, batches: Iterable[CellBatch]) -> None:
    """Replace running means and variances by averages over mini-batches under the present weights.

    In training, batch normalisation uses the mean and variance of the mini-batch; in evaluation,
    running averages of them, which lag behind when the weights change fast. By how much depends on
    the input: with a million counts per cell, log counts are 5 or more in every gene, and even a
    small change of the weights shifts their sum. "Precise" statistics are computed anew instead
    (Wu & Johnson, "Rethinking 'Batch' in BatchNorm", arXiv:2105.07576, 2021). Weights and the state
    of the random numbers are unchanged. No counts are hidden from the encoders, as in evaluation.

    Parameters
    ----------
    vae
        The module; its mode, training or evaluation, is the same afterwards.
    batches
        Training cells, both populations mixed as in training.
    """
    norms = [module for module in vae.modules() if isinstance(module, nn.BatchNorm1d)]
    before = [(norm.momentum, [b.clone() for b in norm.buffers()]) for norm in norms]
    was_training = vae.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # an equal average over all mini-batches
    vae.train()
    try:
        # The whole model runs, because its decoder may have batch normalisation too. That is cheap:
        # the likelihood's heads, the largest layers, are evaluated only when something reads them.
        with torch.no_grad(), seeded(0), own_params(), hiding_counts(vae, 0.0):
            for batch in batches:
                posterior = poutine.trace(vae.guide).get_trace(batch)
                poutine.replay(vae.model, posterior)(batch)
    finally:
        vae.train(was_training)
        for norm, (momentum, buffers) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not int(norm.num_batches_tracked or 0):  # neither model nor guide ran it
                for buffer, value in zip(norm.buffers(), buffers, strict=True):
                    buffer.copy_(value)
