"""A Gaussian likelihood, for data other than counts."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution, constraints
from torch import Tensor, nn

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive.likelihoods.base import Likelihood
from pyro_contrastive.likelihoods.gene_summary import GeneSummary

MEAN = "mean"
SMALLEST_SCALE = 0.01
"""Lower bound of the standard deviations; that of a constant gene would otherwise go to 0."""
INITIAL_LOG_SCALE = -1.0
"""exp(-1) = 0.37, about as much as log-normalised genes vary between cells of one type."""


class Gaussian(Likelihood):
    r"""Normal data, such as log-normalised counts, with one standard deviation per gene.

    .. math:: x_{ng} \sim \mathrm{Normal}(\mu_{ng},\; \sigma_g)

    There is no library size, because normalisation has removed it. So it cannot be latent, there is
    no site ``rate``, and methods that scale by it raise an error. Samples are on the scale of the
    data.

    Parameters
    ----------
    log1p
        The data are log(1 + y), natural logarithm, of expression y in any unit (for example
        ``scanpy.pp.log1p`` of counts per 10,000), so at least 0. Normalised expression is then
        :math:`e^\mu - 1`, or 0 where that is negative, in the unit of y; it does not sum to 1 over
        genes. Fold changes add a pseudocount of 1 unit to it, so that they are differences of
        :math:`\mu`. ``False``: any numbers (scaled data, a protein panel); they have no normalised
        expression, and methods that need it raise an error. Override :meth:`expression` for another
        transformation.

    Attributes
    ----------
    log_scale
        Logarithm of :math:`\sigma_g - 0.01`, ``[genes]``.
    """

    heads: tuple[str, ...] = (MEAN,)
    uses_library: bool = False
    log_scale: nn.Parameter

    def __init__(self, log1p: bool = True) -> None:
        super().__init__()
        check_arguments(locals(), "Gaussian")
        self.log1p = log1p
        self.support = constraints.nonnegative if log1p else constraints.real
        self.pseudocount = 1.0 if log1p else None

    def build(self, n_hidden: int, n_genes: int, n_batch: int = 1) -> None:
        """Make the head and the standard deviations."""
        super().build(n_hidden, n_genes, n_batch)
        self.log_scale = nn.Parameter(torch.full((n_genes,), INITIAL_LOG_SCALE))

    @torch.no_grad()
    def start_from(self, moments: GeneSummary) -> None:
        """Start mean and standard deviation at those of the gene."""
        self.start_head(MEAN, moments.mean)
        # Bounded, since the logarithm of 0 for a constant gene would leave the parameter at -inf.
        deviation = torch.as_tensor(moments.variance).sqrt()
        self.log_scale.copy_((deviation - SMALLEST_SCALE).clamp(min=SMALLEST_SCALE).log())

    def forward(self, heads: Mapping[str, Tensor], library: Tensor) -> Distribution:
        """Return the normal distribution of the data, which does not depend on the library size."""
        return dist.Normal(heads[MEAN], self.log_scale.exp() + SMALLEST_SCALE).to_event(1)

    def expression(self, heads: Mapping[str, Tensor]) -> Tensor | None:
        """Return exp(mean) - 1, at least 0, in the unit that the data had before the logarithm."""
        return torch.expm1(heads[MEAN]).clamp(min=0) if self.log1p else None

    def rate(self, heads: Mapping[str, Tensor], library: Tensor) -> Tensor | None:
        """Return ``None``, as there is no library size."""
        return None

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return the data unchanged."""
        return x
