"""What the encoders say of a cell, as the input of a small network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.guide import Moments
from pyro_contrastive.outline import ModelOutline

START = 0.1
"""Factor of the last layer's random weights: a family starts close to the mean-field one."""


def n_summary(outline: ModelOutline) -> int:
    """Return the number of entries of a :func:`summary_of`, covariates included."""
    return 2 * sum(outline.n_latents.values()) + outline.covariates.n_out


def summary_of(moments: Mapping[str, Moments], covariates: Tensor) -> Tensor:
    """Return means, log variances and covariates of each cell, ``[..., cells, n_summary]``.

    Where latents lie and how well they are known determines, through the decoder, how they are
    correlated; so a family needs no further layers on the genes.
    """
    parts = [part for mean, variance in moments.values() for part in (mean, variance.log())]
    covariates = covariates.expand(*parts[0].shape[:-1], covariates.shape[-1])
    return torch.cat([*parts, covariates], dim=-1)


def without_salient(moments: Mapping[str, Moments], batch: CellBatch) -> dict[str, Moments]:
    """Replace the moments of s in background cells by 0 and 1.

    A background cell has no s, so that no part of its posterior may depend on q(s | x).
    """
    there = batch.is_target.unsqueeze(-1)
    mean, variance = moments["s"]
    return dict(moments) | {"s": (torch.where(there, mean, 0.0), torch.where(there, variance, 1.0))}


def network(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Make a network with one hidden layer whose outputs start close to 0."""
    last = nn.Linear(n_hidden, n_out)
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(START)
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.ReLU(), last)
