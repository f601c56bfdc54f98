"""The prior of a latent library size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_contrastive._tools.arguments import shown
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.priors.base import Prior


class LogNormalLibrary(Prior):
    r"""Library size prior, one log-normal per batch: :math:`\log l_n \sim N(\mu_b, \sigma_b^2)`.

    Parameters
    ----------
    log_means, log_variances
        Mean and population variance of the log total counts of the cells of each batch; any shape
        with one number per batch (scvi-tools' ``[1, n_batch]`` included).

    Raises
    ------
    ValueError
        If the two differ in length, or a number is not finite, or a variance is not positive.
    """

    log_means: Tensor
    log_variances: Tensor

    def __init__(self, log_means: ArrayLike, log_variances: ArrayLike) -> None:
        super().__init__()
        means, variances = (
            _numbers(v, name) for name, v in (("means", log_means), ("variances", log_variances))
        )
        if means.shape != variances.shape:
            msg = (
                f"library_log_means has {means.numel()} entries and library_log_vars "
                f"{variances.numel()}; both need one per batch."
            )
            raise ValueError(msg)
        bad = ~(means.isfinite() & variances.isfinite() & (variances > 0))
        if bad.any():
            msg = (
                "The library size prior needs a finite mean and a positive variance in every "
                f"batch, which is not so in batch {bad.nonzero().flatten().tolist()}. A batch with "
                "a single cell has variance 0: give it the variance of a comparable batch."
            )
            raise ValueError(msg)
        self.register_buffer("log_means", means)
        self.register_buffer("log_variances", variances)

    def forward(self, batch: CellBatch) -> dist.Distribution:
        """Return a log-normal per cell: batch shape ``[cells]``, event shape ``[1]``."""
        codes = batch.batch_codes.long()
        mean = self.log_means[codes].unsqueeze(-1)  # [cells, 1]
        scale = self.log_variances[codes].sqrt().unsqueeze(-1)  # [cells, 1]
        return dist.LogNormal(mean, scale).to_event(1)

    def arguments(self) -> dict[str, Any]:
        """Return means and variances as lists."""
        return {
            "log_means": self.log_means.tolist(),
            "log_variances": self.log_variances.tolist(),
        }


def _numbers(given: ArrayLike, what: str) -> Tensor:
    """Return numbers, one per batch, as a tensor."""
    array = np.asarray(given)
    if array.dtype.kind not in "iuf":
        msg = (
            f"LogNormalLibrary: log_{what} must be numbers, one per batch, not {shown(given)}. In "
            f"a model they are the argument library_log_{'means' if what == 'means' else 'vars'}."
        )
        raise ValueError(msg)
    return torch.as_tensor(array, dtype=torch.get_default_dtype()).reshape(-1)
