"""Likelihoods: modules that own their decoder heads and turn them into a distribution of counts."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_contrastive.components import Component
from pyro_contrastive.distributions import NegativeBinomial as NegativeBinomialDistribution
from pyro_contrastive.distributions import (
    ZeroInflatedNegativeBinomial as ZeroInflatedNegativeBinomialDistribution,
)

SCALE = "scale"
"""Name of the head on the simplex over genes: normalised expression, rho."""


class Likelihood(Component):
    """An observation model: names the decoder heads it needs, and returns a distribution of x.

    Subclasses set `heads` and implement :meth:`forward`; parameters of their own that need the
    number of genes are made in :meth:`build`.

    Attributes
    ----------
    heads
        Names of the linear heads on the decoder's last hidden layer, each giving ``[..., cells,
        genes]``. The head called ``"scale"`` goes through a softmax over genes, and is what the
        library calls normalised expression; every other one arrives as it leaves its linear layer.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> class Poisson(Likelihood):
    ...     heads = ("scale",)
    ...
    ...     def forward(self, heads: dict[str, Tensor], library: Tensor) -> Distribution:
    ...         return dist.Poisson(library * heads["scale"]).to_event(1)
    """

    heads: ClassVar[tuple[str, ...]]

    @abstractmethod
    def forward(self, heads: dict[str, Tensor], library: Tensor) -> Distribution:
        """Return the distribution of the counts, event shape ``[genes]``.

        Parameters
        ----------
        heads
            The decoder's heads by name, each ``[..., cells, genes]``.
        library
            Library size on the natural scale, ``[..., cells, 1]``.
        """

    def build(self, n_hidden: int, n_genes: int) -> None:
        """Make the head layers (and, in subclasses, parameters per gene) once sizes are known.

        Parameters
        ----------
        n_hidden
            Width of the decoder's last hidden layer.
        n_genes
            Number of genes.

        Raises
        ------
        ValueError
            If the likelihood already belongs to another model: two models must not share it.
        """
        if hasattr(self, "layers"):
            msg = (
                f"This {type(self).__name__} object already belongs to a model. Make a new one "
                "for every model, or the two would train each other's parameters."
            )
            raise ValueError(msg)
        self.layers = nn.ModuleDict({name: nn.Linear(n_hidden, n_genes) for name in self.heads})

    def decode(self, hidden: Tensor) -> dict[str, Tensor]:
        """Evaluate the heads on the decoder's last hidden layer, ``[..., cells, n_hidden]``."""
        out = {name: layer(hidden) for name, layer in self.layers.items()}
        if SCALE in out:
            scale = out[SCALE].softmax(dim=-1)
            # Underflow to 0 would make a single count of that gene infinitely unlikely.
            out[SCALE] = scale.clamp(min=torch.finfo(scale.dtype).tiny)
        return out


class NegativeBinomial(Likelihood):
    r"""Negative binomial counts with one inverse dispersion per gene.

    .. math:: x_{ng} \sim \mathrm{NB}(\text{mean} = l_n \rho_{ng},\; \text{inverse dispersion}
        = \theta_g), \qquad \mathrm{Var}\, x = m + m^2 / \theta

    :math:`\theta = \exp(\texttt{log\_inverse\_dispersion})`, initialised from N(0, 1) on the log
    scale, as in scVI (Lopez et al., Nature Methods 2018).
    """

    heads: ClassVar[tuple[str, ...]] = (SCALE,)

    def build(self, n_hidden: int, n_genes: int) -> None:
        """Make the heads and the log inverse dispersion, shape ``[genes]``."""
        super().build(n_hidden, n_genes)
        self.log_inverse_dispersion = nn.Parameter(torch.randn(n_genes))

    def forward(self, heads: dict[str, Tensor], library: Tensor) -> Distribution:
        """Return the negative binomial with mean library x scale."""
        return NegativeBinomialDistribution(
            library * heads[SCALE], self.log_inverse_dispersion.exp()
        ).to_event(1)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    r"""Zero-inflated negative binomial counts, the likelihood of contrastiveVI and of scVI.

    With probability :math:`\mathrm{sigmoid}(\pi_{ng})` a count is a structural zero, else it is
    drawn as in :class:`NegativeBinomial`. The head ``"dropout"`` gives the logits :math:`\pi`.
    """

    heads: ClassVar[tuple[str, ...]] = (SCALE, "dropout")

    def forward(self, heads: dict[str, Tensor], library: Tensor) -> Distribution:
        """Return the zero-inflated negative binomial with mean library x scale before dropout."""
        return ZeroInflatedNegativeBinomialDistribution(
            library * heads[SCALE], self.log_inverse_dispersion.exp(), heads["dropout"]
        ).to_event(1)
