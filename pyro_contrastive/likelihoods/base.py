"""Likelihoods: modules that own their decoder heads and turn them into a distribution of x."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, MutableMapping

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro.distributions import Distribution, constraints
from torch import Tensor, nn

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.components.component import Component
from pyro_contrastive.density.heads import SCALE, Heads
from pyro_contrastive.likelihoods.gene_summary import GeneSummary

DROPOUT = "dropout"
"""Name of the head with the logits of a structural zero."""


class Likelihood(Component):
    """An observation model: names the decoder heads it needs, and returns a distribution of x.

    Subclasses set `heads` and implement :meth:`forward`; parameters of their own that need the
    number of genes are made in :meth:`build`.

    Attributes
    ----------
    heads
        Names of the linear heads on the decoder's last hidden layer, each giving ``[..., cells,
        genes]``. The head called ``"scale"`` goes through a softmax over genes and is normalised
        expression; every other head is the output of its linear layer, any real number.
    support
        Values that an entry of the data may have, a constraint of torch; default counts. Data
        outside the support are refused before anything is computed.
    uses_library
        Whether the distribution depends on the library size (default). If not, the library size
        cannot be latent, and methods that scale by it raise an error.
    pseudocount
        Pseudocount of fold changes where the user gives none, in the units of expression. ``None``
        (default): one that suits expression that sums to 1 over genes.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> class MyPoisson(Likelihood):
    ...     heads = ("scale",)
    ...
    ...     def forward(self, heads: Mapping[str, Tensor], library: Tensor) -> Distribution:
    ...         return dist.Poisson(library * heads["scale"], is_sparse=True).to_event(1)
    """

    heads: tuple[str, ...]
    support: constraints.Constraint = constraints.nonnegative_integer
    uses_library: bool = True
    pseudocount: float | None = None

    @abstractmethod
    def forward(self, heads: Mapping[str, Tensor], library: Tensor) -> Distribution:
        """Return the distribution of the data, event shape ``[genes]``.

        Training calls it in some steps only and replays a recording of it in the others: see
        ``record_steps`` of :class:`~pyro_contrastive.training.TrainingPlan`.

        Parameters
        ----------
        heads
            The decoder's heads by name, each ``[..., cells, genes]``.
        library
            Library size on the natural scale, ``[..., cells, 1]``.
        """

    def build(self, n_hidden: int, n_genes: int, n_batch: int = 1) -> None:
        """Make the head layers (and, in subclasses, parameters per gene) once sizes are known.

        Parameters
        ----------
        n_hidden
            Width of the decoder's last hidden layer.
        n_genes
            Number of genes.
        n_batch
            Number of batches.

        Raises
        ------
        ValueError
            If the likelihood already belongs to another model, with which it cannot be shared.
        """
        if hasattr(self, "layers"):
            msg = (
                f"This {type(self).__name__} object already belongs to a model. Make a new one "
                "for every model; otherwise the two would train each other's parameters."
            )
            raise ValueError(msg)
        self.layers = nn.ModuleDict({name: nn.Linear(n_hidden, n_genes) for name in self.heads})

    @torch.no_grad()
    def start_from(self, moments: GeneSummary) -> None:
        """Start parameters at estimates from the data instead of at random.

        Called before the first training with ``schedule="fast"``. By default the bias of the scale
        head starts at the logarithm of the gene's share of all counts, whatever the decoder's
        hidden layer contributes. Override it to start further parameters from the data.

        Parameters
        ----------
        moments
            Summary of every gene over the training cells.
        """
        self.start_head(SCALE, np.log(moments.share))

    @torch.no_grad()
    def start_head(self, name: str, value: NDArray[np.float64]) -> None:
        """Set the bias of a head, ``[genes]``, if there is such a head and it has a bias."""
        layers = getattr(self, "layers", None)  # an overridden `build` need not make any
        layer = dict(layers.items()).get(name) if isinstance(layers, nn.ModuleDict) else None
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            layer.bias.copy_(torch.as_tensor(value))

    def decode(
        self, hidden: Tensor, batch: CellBatch, shared: Mapping[str, Tensor]
    ) -> MutableMapping[str, Tensor]:
        """Apply the heads to the decoder's last hidden layer, each on first access.

        The log-density is evaluated faster if no head was accessed before it: see
        :mod:`pyro_contrastive.density`.

        Parameters
        ----------
        hidden
            ``[..., cells, n_hidden]``.
        batch
            The cells, for likelihoods whose parameters differ between batches.
        shared
            Draws of the parameters that have a prior, by the names of their sites. Only likelihoods
            with such a parameter use it.
        """
        if "layers" not in self._modules:
            msg = f"{type(self).__name__}.build made no layers for the heads: call super().build()."
            raise AttributeError(msg)
        return Heads(hidden, self.layers)

    def expression(self, heads: Mapping[str, Tensor]) -> Tensor | None:
        """Return normalised expression, ``[..., cells, genes]``: by default the scale head.

        It is the site ``scale`` of the model, and differential expression compares it. Where zeros
        are inflated it is what a gene would have without its structural zeros; :meth:`mean_scale`
        counts these. ``None`` if the likelihood has none; methods that need it then raise an error.
        """
        return heads.get(SCALE)

    def rate(self, heads: Mapping[str, Tensor], library: Tensor) -> Tensor | None:
        """Return the site ``rate``: by default library x normalised expression.

        For counts this is the mean before zero inflation. ``None`` if there is no such thing.
        """
        expression = self.expression(heads)
        return None if expression is None else library * expression

    def mean_scale(self, heads: Mapping[str, Tensor], library: Tensor) -> Tensor | None:
        r"""Return the mean of the data per unit of library size, ``[..., cells, genes]``.

        .. math:: E[x_{ng} \mid z_n, s_n, l_n] \, / \, l_n

        It is the site ``mean_scale`` of the model, and what treatment effects and counterfactuals
        compare. By default it is the mean of the distribution that :meth:`forward` returns, so that
        structural zeros are counted, which :meth:`expression` leaves out. For data that are not
        counts it is :meth:`expression`. ``None`` if there is no such thing.
        """
        if not self.support.is_discrete:
            return self.expression(heads)
        # An empty cell has size 0: for counts, the ratio is the same at size 1.
        size = library.clamp(min=1)
        try:
            mean: Tensor = self(heads, size).mean
        except NotImplementedError:
            return None
        return mean / size

    def encoder_input(self, x: Tensor) -> Tensor:
        """Turn data ``[cells, genes]`` into the input of the encoders: by default ``log(1 + x)``.

        Raises
        ------
        ValueError
            If a number is -1 or less while Pyro's validation is on, as it is by default.
        """
        if dist.is_validation_enabled() and (x <= -1).any():
            msg = (
                f"The data hold negative numbers, down to {float(x.min()):g}: the encoders of a "
                f"model with {type(self).__name__} see log(1 + x), which is undefined at -1 or "
                "below. Counts are never negative; for other data take a likelihood such as "
                "Gaussian(), or override Likelihood.encoder_input."
            )
            raise ValueError(msg)
        return torch.log1p(x)
