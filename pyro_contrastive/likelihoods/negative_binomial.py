"""Negative binomial counts, with or without zero inflation."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Literal, get_args

import numpy as np
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.density.decoded import decoded_counts
from pyro_contrastive.density.distributions import (
    NegativeBinomialDistribution,
    ZeroInflatedNegativeBinomialDistribution,
)
from pyro_contrastive.density.heads import SCALE
from pyro_contrastive.likelihoods.base import DROPOUT, Likelihood
from pyro_contrastive.likelihoods.gene_summary import GeneSummary

INVERSE_DISPERSION = "inverse_dispersion"
"""Name of the inverse dispersion, among the heads and as a site where it has a prior."""
LOG_INVERSE_DISPERSION = "log_inverse_dispersion"
Dispersion = Literal["gene", "gene-batch", "gene-cell"]


class NegativeBinomial(Likelihood):
    r"""Negative binomial counts.

    .. math:: x_{ng} \sim \mathrm{NB}(\text{mean} = l_n \rho_{ng},\; \text{inverse dispersion}
        = \theta), \qquad \mathrm{Var}\, x = m + m^2 / \theta

    as in scVI (Lopez et al., Nature Methods 2018). :math:`\log \theta` is initialised from N(0, 1)
    (and see :meth:`start_from`).

    Parameters
    ----------
    dispersion
        ``"gene"``: one inverse dispersion per gene; ``"gene-batch"``: one per gene and batch;
        ``"gene-cell"``: one per gene and cell, from a decoder head.

    Raises
    ------
    ValueError
        If `dispersion` has another value.

    Attributes
    ----------
    log_inverse_dispersion
        :math:`\log \theta`, ``[genes]`` or ``[batches, genes]``; ``None`` with a head.
    """

    heads: tuple[str, ...] = (SCALE,)
    log_inverse_dispersion: nn.Parameter | None

    def __init__(self, dispersion: Dispersion = "gene") -> None:
        super().__init__()
        if dispersion not in get_args(Dispersion):
            msg = f"dispersion must be one of {get_args(Dispersion)}, not {dispersion!r}."
            raise ValueError(msg)
        self.dispersion = dispersion
        if dispersion == "gene-cell":
            self.heads = (*type(self).heads, LOG_INVERSE_DISPERSION)

    def build(self, n_hidden: int, n_genes: int, n_batch: int = 1) -> None:
        """Make the heads and the log inverse dispersion."""
        super().build(n_hidden, n_genes, n_batch)
        shapes = {"gene": (n_genes,), "gene-batch": (max(n_batch, 1), n_genes)}
        shape = shapes.get(self.dispersion)
        self.log_inverse_dispersion = None if shape is None else nn.Parameter(torch.randn(shape))

    @torch.no_grad()
    def start_from(self, moments: GeneSummary) -> None:
        """Start scale and inverse dispersion at the estimates for the gene."""
        super().start_from(moments)
        log_theta = np.log(moments.inverse_dispersion)
        self.start_head(LOG_INVERSE_DISPERSION, log_theta)
        if self.log_inverse_dispersion is not None:  # one row, or one for each batch
            self.log_inverse_dispersion.copy_(torch.as_tensor(log_theta))

    def decode(
        self, hidden: Tensor, batch: CellBatch, shared: Mapping[str, Tensor]
    ) -> MutableMapping[str, Tensor]:
        """Apply the heads; add the inverse dispersion, ``[genes]`` or ``[cells, genes]``."""
        heads = super().decode(hidden, batch, shared)
        if self.log_inverse_dispersion is None:
            heads[INVERSE_DISPERSION] = heads.pop(LOG_INVERSE_DISPERSION).exp()
            return heads
        theta = shared.get(INVERSE_DISPERSION)
        if theta is None:
            theta = self.log_inverse_dispersion.exp()
        if self.dispersion == "gene-batch":
            theta = theta[..., batch.batch_codes.long(), :]
            # A draw of the whole table has an axis of length 1 in place of the cells.
            theta = theta.squeeze(-3) if theta.dim() > 2 else theta  # noqa: PLR2004
        heads[INVERSE_DISPERSION] = theta
        return heads

    def forward(self, heads: Mapping[str, Tensor], library: Tensor) -> Distribution:
        """Return the negative binomial with mean library x scale."""
        theta = heads[INVERSE_DISPERSION]

        # A function, so that the heads are evaluated only if the fused density cannot be used.
        def make() -> Distribution:
            return NegativeBinomialDistribution(library * heads[SCALE], theta).to_event(1)

        return decoded_counts(make, heads, library, theta, dropout=None)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    r"""Zero-inflated negative binomial counts, the likelihood of contrastiveVI and of scVI.

    With probability :math:`\mathrm{sigmoid}(\pi_{ng})` a count is a structural zero. Otherwise it
    is drawn as in :class:`NegativeBinomial`. The head ``"dropout"`` gives the logits :math:`\pi`.

    Parameters
    ----------
    dispersion
        See :class:`NegativeBinomial`.
    """

    heads: tuple[str, ...] = (SCALE, DROPOUT)

    def forward(self, heads: Mapping[str, Tensor], library: Tensor) -> Distribution:
        """Return the zero-inflated negative binomial with mean library x scale before dropout."""
        theta = heads[INVERSE_DISPERSION]

        def make() -> Distribution:
            return ZeroInflatedNegativeBinomialDistribution(
                library * heads[SCALE], theta, heads[DROPOUT]
            ).to_event(1)

        return decoded_counts(make, heads, library, theta, dropout=DROPOUT)
