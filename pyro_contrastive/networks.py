"""Encoder and decoder bodies: plain torch modules, no Pyro.

The architecture is the one of scvi-tools' ``FCLayers`` at the settings contrastiveVI uses, so that
weights can be copied between the two: blocks of Linear, BatchNorm (momentum 0.01, eps 0.001), ReLU
and dropout, with the covariates concatenated to the input of every block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn


class CellwiseBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over every axis but the last.

    Two departures from :class:`torch.nn.BatchNorm1d`: leading axes are flattened, so that inputs
    may carry an axis of posterior samples; and a mini-batch of one cell, which has no variance, is
    normalised with the running statistics instead of being refused.
    """

    def forward(self, h: Tensor) -> Tensor:
        """Normalise `h`, shape ``[..., cells, features]``."""
        flat = h.reshape(-1, h.shape[-1])  # [samples * cells, features]
        if self.training and flat.shape[0] == 1:
            out = F.batch_norm(
                flat, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        else:
            out = super().forward(flat)
        return out.reshape(h.shape)


class Block(nn.Module):
    """Linear on (input, covariates), batch norm, ReLU, dropout."""

    def __init__(self, n_in: int, n_covariates: int, n_out: int, dropout_rate: float) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in + n_covariates, n_out)
        self.norm = CellwiseBatchNorm(n_out, momentum=0.01, eps=0.001)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, h: Tensor, covariates: Tensor) -> Tensor:
        """Map `h` ``[..., cells, n_in]`` and `covariates` ``[cells, c]`` to ``[..., cells, n_out]``."""
        if covariates.shape[-1]:
            covariates = covariates.expand(*h.shape[:-1], covariates.shape[-1])
            h = torch.cat([h, covariates], dim=-1)
        return self.dropout(F.relu(self.norm(self.linear(h))))  # type: ignore[no-any-return]


class Body(nn.Module):
    """A stack of `n_layers` blocks of width `n_hidden`.

    Parameters
    ----------
    n_in
        Width of the input.
    n_covariates
        Width of the covariates concatenated to the input of every block.
    n_hidden
        Width of every block.
    n_layers
        Number of blocks, at least 1.
    dropout_rate
        Probability of dropping a hidden unit during training.
    """

    def __init__(
        self, n_in: int, n_covariates: int, n_hidden: int, n_layers: int, dropout_rate: float
    ) -> None:
        super().__init__()
        widths = [n_in] + [n_hidden] * (n_layers - 1)
        self.blocks = nn.ModuleList(
            Block(width, n_covariates, n_hidden, dropout_rate) for width in widths
        )

    def forward(self, h: Tensor, covariates: Tensor) -> Tensor:
        """Map ``[..., cells, n_in]`` to ``[..., cells, n_hidden]``."""
        for block in self.blocks:
            h = block(h, covariates)
        return h


class Encoder(nn.Module):
    """Amortised mean and variance of one latent variable, from log(1 + counts).

    Parameters
    ----------
    n_input
        Number of genes.
    n_output
        Dimension of the latent variable.
    n_covariates, n_hidden, n_layers, dropout_rate
        See :class:`Body`.
    """

    min_variance = 1e-4
    """Added to the variance; the value used by scvi-tools' encoders."""

    def __init__(
        self,
        n_input: int,
        n_output: int,
        *,
        n_covariates: int,
        n_hidden: int,
        n_layers: int,
        dropout_rate: float,
    ) -> None:
        super().__init__()
        self.body = Body(n_input, n_covariates, n_hidden, n_layers, dropout_rate)
        self.mean = nn.Linear(n_hidden, n_output)
        self.log_variance = nn.Linear(n_hidden, n_output)

    def forward(self, log_counts: Tensor, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance, each ``[cells, n_output]``, for ``[cells, genes]`` inputs."""
        h = self.body(log_counts, covariates)  # [cells, hidden]
        return self.mean(h), self.log_variance(h).exp() + self.min_variance


class Covariates(nn.Module):
    """What encoders and decoder are told about a cell beside its counts: its batch, one-hot.

    Parameters
    ----------
    n_batch
        Number of batches. With 0 or 1 there is nothing to tell and the width is 0.
    """

    def __init__(self, n_batch: int) -> None:
        super().__init__()
        self.n_batch = n_batch
        self.n_out = n_batch if n_batch > 1 else 0

    def forward(self, batch: Tensor, like: Tensor) -> Tensor:
        """One-hot `batch` codes ``[cells]``: shape ``[cells, n_out]``, dtype and device of `like`."""
        if not self.n_out:
            return like.new_zeros((batch.shape[0], 0))
        return F.one_hot(batch.long(), self.n_out).to(like)
