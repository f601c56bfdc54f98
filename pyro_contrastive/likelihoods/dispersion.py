"""Prior and posterior of the inverse dispersions, which all cells share."""

from __future__ import annotations

from typing import Literal, cast, get_args

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.likelihoods import Likelihood
from pyro_contrastive.priors import Prior, PriorLike, as_prior

Posterior = Literal["variational", "map"]
INITIAL_LOG_SCALE = -2.0


class DispersionPrior(Prior):
    """A prior of every entry of the likelihood's table of inverse dispersions.

    Parameters
    ----------
    prior
        Prior with event shape ``[genes]`` and positive support.
    shape
        Shape of the table, ``[genes]`` or ``[batches, genes]``.
    """

    def __init__(self, prior: Prior, shape: torch.Size) -> None:
        super().__init__()
        self.prior: Prior = prior
        self.shape = shape

    def forward(self, batch: CellBatch) -> Distribution:
        """Return the prior of the table: batch shape ``[]``, event shape that of the table."""
        prior = self.prior(batch)
        if len(self.shape) == 1:
            return prior
        return prior.expand(self.shape[:-1]).to_event(len(self.shape) - 1)


class DispersionPosterior(nn.Module):
    r"""q(theta), centred on the likelihood's own parameter.

    With m the likelihood's ``log_inverse_dispersion``, ``"map"`` is the point
    :math:`\theta = e^m`, which maximises the posterior density of theta, and ``"variational"`` is
    log-normal with median :math:`e^m` and a learned scale per entry.

    Parameters
    ----------
    likelihood
        Its ``log_inverse_dispersion``, ``[genes]`` or ``[batches, genes]``, is the centre. That
        remains a parameter of the likelihood, and is not registered as one of this module.
    kind
        ``"variational"`` or ``"map"``.
    """

    log_scale: nn.Parameter | None

    def __init__(self, likelihood: Likelihood, kind: Posterior) -> None:
        super().__init__()
        self._likelihood = (likelihood,)  # in a tuple, so that it is not registered here too
        scale = torch.full_like(self.log_median, INITIAL_LOG_SCALE)
        self.log_scale = nn.Parameter(scale) if kind == "variational" else None

    @property
    def log_median(self) -> Tensor:
        """The centre on the log scale, of the shape of the table."""
        return cast(Tensor, self._likelihood[0].log_inverse_dispersion)

    def forward(self) -> Distribution:
        """Return q(theta): batch shape ``[]``, event shape that of the table."""
        median = self.log_median
        if self.log_scale is None:
            return dist.Delta(median.exp()).to_event(median.dim())
        return dist.LogNormal(median, self.log_scale.exp()).to_event(median.dim())


def dispersion_factors(
    prior: PriorLike | None, likelihood: Likelihood, kind: Posterior
) -> tuple[Prior | None, DispersionPosterior | None]:
    """Make prior and posterior of the inverse dispersions of a likelihood that has been built.

    Parameters
    ----------
    prior
        ``None`` for no prior, a positive distribution (scalar, or one number per gene), or a
        `Prior` with event shape ``[genes]``.
    likelihood
        Must have a table ``log_inverse_dispersion``, per gene or per gene and batch.
    kind
        ``"variational"`` or ``"map"``.

    Raises
    ------
    ValueError
        If the likelihood has no such table, the prior is not positive, or `kind` is neither.
    """
    if kind not in get_args(Posterior):
        msg = f"dispersion_posterior must be one of {get_args(Posterior)}, not {kind!r}."
        raise ValueError(msg)
    if prior is None:
        return None, None
    table = getattr(likelihood, "log_inverse_dispersion", None)
    if table is None:
        msg = (
            f"dispersion_prior needs a likelihood with one inverse dispersion per gene (or per "
            f"gene and batch), such as NegativeBinomial(); this {type(likelihood).__name__} has "
            "none."
        )
        raise ValueError(msg)
    per_gene = as_prior(prior, table.shape[-1], "dispersion_prior")
    check_positive(per_gene, "dispersion_prior")
    return DispersionPrior(per_gene, table.shape), DispersionPosterior(likelihood, kind)


def check_positive(prior: Prior, keyword: str) -> None:
    """Refuse a prior whose draws are not all positive.

    Raises
    ------
    ValueError
        If one of a thousand draws is not.
    """
    if not (draws_of(prior) > 0).all():
        msg = f"{keyword} must be a distribution of positive numbers, such as dist.Gamma(2., 1.)."
        raise ValueError(msg)


def draws_of(prior: Prior) -> Tensor:
    """Draw from a prior for one background cell of the first batch, a thousand times."""
    cell = CellBatch(condition=torch.zeros(1, dtype=torch.long))
    # Random numbers of its own: a check must not change the draws of the user's seed.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        draws: Tensor = prior(cell).sample(torch.Size([1000]))
    return draws
