"""Encoder and decoder bodies: plain torch modules, no Pyro.

The architecture is the one of scvi-tools' ``FCLayers`` at the settings contrastiveVI uses, so that
weights can be copied between the two: blocks of Linear, BatchNorm (momentum 0.01, eps 0.001), ReLU
and dropout, with the covariates concatenated to the input of every block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn

from pyro_contrastive.cells import CellBatch


class CellwiseBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over every axis but the last.

    Two departures from :class:`torch.nn.BatchNorm1d`: leading axes are flattened, so that inputs
    may have an axis of posterior samples; and a mini-batch of one cell, which has no variance, is
    normalised with the running statistics instead of raising an error.
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


class QuickDropout(nn.Dropout):
    """Dropout that draws 16 random bits for each unit, where torch draws 53.

    On a CPU, drawing random bits is most of the cost of dropout. The probability is rounded to a
    multiple of 2^-16, and units that stay are scaled by the inverse of exactly its complement, so
    that the mean is exact.
    """

    def forward(self, h: Tensor) -> Tensor:
        """Drop units of `h`, any shape, in training mode."""
        n_dropped = round(self.p * 2**16)
        if not self.training or h.device.type != "cpu" or not 0 < n_dropped < 2**16:
            return super().forward(h)
        words = torch.randint(-(2**63), 2**63 - 1, (h.numel() // 4 + 1,))
        bits = words.view(torch.int16)[: h.numel()].view(h.shape)
        kept = bits >= n_dropped - 2**15  # drawn from -2^15 on
        return h * kept.to(h.dtype).mul_(2**16 / (2**16 - n_dropped))


class MoleculeDropout(nn.Module):
    """In training, hides counts from the encoders as if their molecules had been lost.

    Each molecule is lost with probability :attr:`rate`, independently, and a count is hidden if all
    of its molecules are: a count of x with probability ``rate ** x``. A single molecule is often
    noise, and is hidden often; a high count hardly ever is. Counts that are not hidden are divided
    by the probability of that, so that the input is the same on average.

    It has no parameters, and its rate is set by training: see
    :class:`~pyro_contrastive.training.TrainingPlan`.

    Attributes
    ----------
    rate
        Probability of losing a molecule, from 0 (default) to below 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0

    @property
    def is_on(self) -> bool:
        """Whether anything is hidden now."""
        return self.training and self.rate > 0

    def forward(self, values: Tensor, counts: Tensor) -> Tensor:
        """Hide some of `values`, which were computed from `counts` of the same shape."""
        if not self.is_on:
            return values
        seen = -torch.expm1(counts * math.log(self.rate))  # 1 - rate ** counts
        # Where the count is 0, so is the value; the clamp is for it, no count is seen less often.
        return values * (torch.rand_like(seen) < seen) / seen.clamp(min=1.0 - self.rate)


class Block(nn.Module):
    """Linear on (input, covariates), batch norm, ReLU, dropout."""

    def __init__(self, n_in: int, n_covariates: int, n_out: int, dropout_rate: float) -> None:
        super().__init__()
        self.n_in = n_in
        self.linear = nn.Linear(n_in + n_covariates, n_out)
        self.norm = CellwiseBatchNorm(n_out, momentum=0.01, eps=0.001)
        self.dropout = QuickDropout(dropout_rate)

    def forward(self, h: Tensor, covariates: Tensor) -> Tensor:
        """Map `h` ``[..., cells, n_in]`` (and covariates) to ``[..., cells, n_out]``."""
        if covariates.shape[-1]:
            covariates = covariates.expand(*h.shape[:-1], covariates.shape[-1])
            h = torch.cat([h, covariates], dim=-1)
        return self._activate(self.linear(h))

    def of_product(self, product: Tensor, covariates: Tensor) -> Tensor:
        """Return the output for an input whose product with the weights is already known.

        The encoder multiplies sparse counts faster than a dense layer could.

        Parameters
        ----------
        product
            The input times its weights, without bias, ``[cells, n_out]``.
        covariates
            As in :meth:`forward`.
        """
        if not covariates.shape[-1]:
            return self._activate(product + self.linear.bias)
        weights = self.linear.weight[:, self.n_in :]
        return self._activate(product + F.linear(covariates, weights, self.linear.bias))

    def _activate(self, h: Tensor) -> Tensor:
        return self.dropout(F.relu(self.norm(h)))


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
        Number of blocks. With 0 the output is the input followed by the covariates, so that a
        linear layer on top is linear in the input.
    dropout_rate
        Probability of dropping a hidden unit during training.
    """

    def __init__(
        self, n_in: int, n_covariates: int, n_hidden: int, n_layers: int, dropout_rate: float
    ) -> None:
        super().__init__()
        self.n_out = n_hidden if n_layers else n_in + n_covariates
        self.blocks = nn.ModuleList(
            Block(n_hidden if i else n_in, n_covariates, n_hidden, dropout_rate)
            for i in range(n_layers)
        )

    def forward(self, h: Tensor, covariates: Tensor) -> Tensor:
        """Map ``[..., cells, n_in]`` to ``[..., cells, n_out]``."""
        if not self.blocks and covariates.shape[-1]:
            covariates = covariates.expand(*h.shape[:-1], covariates.shape[-1])
            return torch.cat([h, covariates], dim=-1)
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
        # Stored gene by gene, the order in which the sparse product reads the weights and writes
        # their gradient.
        first = cast(Block, self.body.blocks[0]).linear
        first.weight = nn.Parameter(first.weight.detach().t().contiguous().t())
        self.mean = nn.Linear(n_hidden, n_output)
        self.log_variance = nn.Linear(n_hidden, n_output)

    def forward(self, log_counts: Tensor, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance, each ``[cells, n_output]``, for ``[cells, genes]`` inputs."""
        return self._moments(self.body(log_counts, covariates))

    @property
    def input_weight(self) -> Tensor:
        """Weights of the first layer on the counts, ``[hidden, genes]``."""
        first = cast(Block, self.body.blocks[0])
        weight = first.linear.weight
        return weight if weight.shape[1] == first.n_in else weight[:, : first.n_in]

    def of_product(self, product: Tensor, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance from input times :attr:`input_weight`, ``[cells, hidden]``."""
        first, *others = self.body.blocks
        h = cast(Block, first).of_product(product, covariates)
        for block in others:
            h = block(h, covariates)
        return self._moments(h)

    def _moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(h), self.log_variance(h).exp() + self.min_variance


class Covariates(nn.Module):
    """Input of encoders and decoder besides counts and latents.

    The batch and every categorical covariate are one-hot, continuous covariates unchanged. A
    category with fewer than two levels has no information, and no column.

    Parameters
    ----------
    n_batch
        Number of batches.
    n_cats_per_cov
        Number of levels of each categorical covariate.
    n_continuous
        Number of continuous covariates.
    """

    def __init__(
        self, n_batch: int, n_cats_per_cov: Sequence[int] = (), n_continuous: int = 0
    ) -> None:
        super().__init__()
        self.n_batch = n_batch
        self.n_cats_per_cov = tuple(n_cats_per_cov)
        self.n_continuous = n_continuous
        levels = [n for n in (n_batch, *self.n_cats_per_cov) if n > 1]
        self.n_out = sum(levels) + n_continuous

    def forward(self, batch: CellBatch, like: Tensor) -> Tensor:
        """Return ``[cells, n_out]``, with dtype and device of `like`.

        Raises
        ------
        ValueError
            If the batch lacks a covariate that the model was made with.
        """
        if not self.n_out:
            return like.new_zeros((len(batch), 0))
        parts = [self._one_hot(batch.batch_codes, self.n_batch)]
        if self.n_cats_per_cov:
            codes = self._given(batch.categorical, len(self.n_cats_per_cov), "categorical")
            for column, n_levels in zip(codes.unbind(-1), self.n_cats_per_cov, strict=True):
                parts.append(self._one_hot(column, n_levels))
        if self.n_continuous:
            parts.append(self._given(batch.continuous, self.n_continuous, "continuous"))
        return torch.cat([part.to(like) for part in parts], dim=-1)

    @staticmethod
    def _one_hot(codes: Tensor, n_levels: int) -> Tensor:
        if n_levels < 2:  # noqa: PLR2004  # no information
            return codes.new_zeros((len(codes), 0))
        # Not F.one_hot, which reads the smallest code on a CPU: a step with it could not be
        # recorded.
        return F.embedding(codes.long(), torch.eye(n_levels, device=codes.device))

    @staticmethod
    def _given(values: Tensor | None, n_columns: int, name: str) -> Tensor:
        if values is None or values.shape[-1] != n_columns:
            msg = (
                f"The model was made with {n_columns} {name} covariates; this CellBatch has "
                f"{0 if values is None else values.shape[-1]}."
            )
            raise ValueError(msg)
        return values
