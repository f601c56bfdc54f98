"""Ready-made priors with learned parameters: mixtures, VampPrior, a mean per condition.

The mixtures have no closed-form KL divergence from the guide's normal posteriors. Under either ELBO
it is estimated by log q - log p of the draw, which is unbiased.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix, issparse, spmatrix
from torch import Tensor, nn

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive._tools.threads import one_thread
from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.networks import Block
from pyro_contrastive.priors.base import Prior


def _mixture(logits: Tensor, mean: Tensor, scale: Tensor) -> dist.Distribution:
    """Mix diagonal normals: logits ``[components]``, the others ``[components, latents]``."""
    return dist.MixtureSameFamily(
        dist.Categorical(logits=logits), dist.Normal(mean, scale).to_event(1)
    )


class MixtureOfGaussians(Prior):
    r"""A learned mixture of normals with diagonal covariance.

    .. math:: p(z) = \sum_{k=1}^K \pi_k N(z; \mu_k, \mathrm{diag}(\sigma_k^2))

    with all of :math:`\pi, \mu, \sigma` learned: the prior of VaDE (Jiang et al. 2017, "Variational
    deep embedding") and, for single cells, of scVAE (Grønbech et al. 2020). Weights start equal,
    means at random draws of :math:`N(0, 3/4)` and variances at 1/4, so that the mixture is about as
    wide as a standard normal, but the components are apart. (Components that start at the same
    place separate slowly.)

    Parameters
    ----------
    n_latent
        Dimension of the latent variable.
    n_components
        Number of components K.
    """

    @one_thread()  # means are drawn
    def __init__(self, n_latent: int, n_components: int = 10) -> None:
        super().__init__()
        check_arguments(locals(), "MixtureOfGaussians")
        self.n_latent = n_latent
        self.n_components = n_components
        self.logits = nn.Parameter(torch.zeros(n_components))
        self.means = nn.Parameter(math.sqrt(0.75) * torch.randn(n_components, n_latent))
        self.log_scales = nn.Parameter(torch.full((n_components, n_latent), math.log(0.5)))

    def forward(self, batch: CellBatch) -> dist.Distribution:
        """Return the mixture, the same for every cell: event ``[n_latent]``."""
        return _mixture(self.logits, self.means, self.log_scales.exp())


class VampPrior(Prior):
    r"""The guide's posteriors at learned pseudo-inputs, mixed (Tomczak & Welling 2018).

    .. math:: p(z) = \frac{1}{K} \sum_{k=1}^K q(z \mid u_k)

    where q is the guide's own encoder of that latent, and the pseudo-inputs :math:`u_k` are learned
    on the encoder's scale, log(1 + counts), where they may leave the range of real counts. The
    encoder is evaluated at them without dropout and with its running batch-norm statistics, so that
    they neither depend on nor disturb the mini-batch. q is the normal with the encoder's mean and
    variance, whatever else the guide makes of them. In a
    :class:`~pyro_contrastive.ConditionalGuide` the encoder of s also sees z, so that s needs
    another prior.

    The encoder belongs to the guide; the prior refers to it and saves none of its parameters. It
    has to receive it through :meth:`bind` before use, also after loading a model. Make the prior
    from data with :meth:`from_counts`; ``VampPrior(n_input)`` starts every pseudo-input at 0.

    Parameters
    ----------
    n_input
        Number of genes.
    n_components
        Number of pseudo-inputs K.
    n_covariates
        Number of covariate columns the encoder takes (batch one-hot and so on); 0 for none.
    """

    covariates: Tensor

    def __init__(self, n_input: int, n_components: int = 50, n_covariates: int = 0) -> None:
        super().__init__()
        check_arguments(locals(), "VampPrior")
        self.n_input = n_input
        self.n_components = n_components
        self.n_covariates = n_covariates
        self.pseudo_inputs = nn.Parameter(torch.zeros(n_components, n_input))
        self.register_buffer("covariates", torch.zeros(n_components, n_covariates))
        self._bound: tuple[nn.Module, ...] = ()  # in a tuple nn.Module does not register it

    @classmethod
    def from_counts(
        cls,
        counts: ArrayLike | spmatrix,
        n_components: int = 50,
        *,
        covariates: ArrayLike | None = None,
        seed: int = 0,
    ) -> Self:
        """Start the pseudo-inputs at random cells.

        Parameters
        ----------
        counts
            Raw counts, cells by genes, dense or sparse. For a prior of s give target cells only.
        n_components
            Number of pseudo-inputs; the cells are drawn without replacement.
        covariates
            Covariates of these cells as the encoder takes them, ``[cells, n_covariates]``: the
            output of ``vae.guide.covariates``. They stay fixed, as a batch cannot be learned.
        seed
            Seed of the choice of cells.

        Raises
        ------
        ValueError
            If there are fewer cells than components.
        """
        table = csr_matrix(counts) if issparse(counts) else np.asarray(counts)
        n_cells, n_input = table.shape
        if n_cells < n_components:
            msg = f"VampPrior: {n_components} pseudo-inputs cannot be taken from {n_cells} cells."
            raise ValueError(msg)
        chosen = np.sort(np.random.default_rng(seed).choice(n_cells, n_components, replace=False))
        rows = table[chosen]
        rows = rows.toarray() if issparse(rows) else rows
        if covariates is None:
            columns = np.zeros((n_components, 0))
        else:
            columns = np.asarray(covariates)[chosen]
        prior = cls(n_input, n_components, columns.shape[1])
        with torch.no_grad():
            prior.pseudo_inputs.copy_(torch.as_tensor(np.log1p(rows)))
            prior.covariates.copy_(torch.as_tensor(columns))
        return prior

    def bind(self, encoder: nn.Module) -> None:
        """Receive the encoder of the pseudo-inputs: the guide's own for this latent.

        Raises
        ------
        ValueError
            If it takes other genes or covariates than the prior was made for.
        """
        first = getattr(getattr(encoder, "body", None), "blocks", [None])[0]
        if isinstance(first, Block):
            n_covariates = first.linear.in_features - first.n_in
            if (first.n_in, n_covariates) != (self.n_input, self.n_covariates):
                msg = (
                    f"VampPrior was made for {self.n_input} genes and {self.n_covariates} covariate"
                    f" columns; the encoder takes {first.n_in} genes and {n_covariates} columns "
                    "(one per batch and per level of a categorical covariate, in the order set up, "
                    "then the continuous ones; with a ConditionalGuide also z, and then s cannot "
                    "have this prior). Give from_counts the counts of these genes and "
                    'covariates=, for batches e.g. pd.get_dummies(adata.obs["batch"], dtype=float).'
                )
                raise ValueError(msg)
        self._bound = (encoder,)

    def forward(self, batch: CellBatch) -> dist.Distribution:
        """Return the mixture, the same for every cell: event ``[n_latent]``.

        Raises
        ------
        RuntimeError
            If :meth:`bind` has not been called.
        """
        if not self._bound:
            msg = (
                "VampPrior has no encoder yet. Call prior.bind(vae.guide.z_encoder) for a "
                "background prior, prior.bind(vae.guide.s_encoder) for a salient one."
            )
            raise RuntimeError(msg)
        (encoder,) = self._bound
        # `evaluating` switches gradients off; pseudo-inputs are learned through the encoder.
        with_gradient = torch.is_grad_enabled()
        with evaluating(encoder), torch.set_grad_enabled(with_gradient):
            mean, variance = encoder(self.pseudo_inputs, self.covariates)
        return _mixture(mean.new_zeros(self.n_components), mean, variance.sqrt())


class PerConditionNormal(Prior):
    r"""A normal with a learned mean per condition.

    .. math:: s_n \sim N(m_{c(n)}, I)

    with :math:`c(n)` the condition of cell n, after the perturbation-specific prior of
    contrastiveVI+. The means start at 0. The KL divergence from the guide has a closed form. The
    prior itself does not restrict the means. To shrink them to 0, add the penalty
    :class:`~pyro_contrastive.ShrinkMeans`: a prior on the means concerns the whole data set, while
    this module only ever sees one mini-batch.

    As salient prior, row 0 (background cells, which have no s) is never trained and stays 0.

    Parameters
    ----------
    n_conditions
        Number of conditions, the background included: codes are 0 .. n_conditions - 1.
    n_latent
        Dimension of the latent variable.
    """

    def __init__(self, n_conditions: int, n_latent: int) -> None:
        super().__init__()
        check_arguments(locals(), "PerConditionNormal")
        self.n_conditions = n_conditions
        self.n_latent = n_latent
        self.means = nn.Parameter(torch.zeros(n_conditions, n_latent))

    def forward(self, batch: CellBatch) -> dist.Distribution:
        """Return a normal per cell: batch shape ``[cells]``, event ``[n_latent]``."""
        means = self.means[batch.condition.long()]  # [cells, n_latent]
        return dist.Normal(means, torch.ones_like(means)).to_event(1)
