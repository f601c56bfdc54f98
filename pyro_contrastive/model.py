"""The generative model p(z) p(s) p(l) p(x | z, s, l), as a Pyro program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar

import pyro
import torch
from pyro.distributions import Distribution
from torch import Tensor

from pyro_contrastive._tools.pyro_names import NamedPyroModule
from pyro_contrastive.cells import NOTHING, CellBatch, X
from pyro_contrastive.likelihoods import INVERSE_DISPERSION, Likelihood
from pyro_contrastive.likelihoods.modality import Modality
from pyro_contrastive.networks import Body, Covariates
from pyro_contrastive.priors import Prior

CELLS = "cells"
"""Name of the one plate, shared by model and guide."""
SALIENT = "s"
"""Name of the site of the salient latent."""


_expression: ContextVar[bool] = ContextVar("expression", default=True)


@contextmanager
def without_expression() -> Iterator[None]:
    """Run models inside without their sites ``scale``, ``rate``, ``mean_scale`` and ``mean``.

    These sites are arrays of all cells and genes, which an ELBO does not need; and once the head
    behind them has been evaluated, the log-density takes its slowest way (`density`).

    This is a context variable, because the objective, which knows whether the sites are needed,
    runs the model through Pyro and cannot pass it another argument. An effect handler that hides
    the sites would come too late, when they have been computed.
    """
    token = _expression.set(False)
    try:
        yield
    finally:
        _expression.reset(token)


class ContrastiveModel(NamedPyroModule):
    """The generative model of contrastiveVI (Weinberger, Lin & Lee, Nature Methods 2023).

    ::

        inverse dispersion ~ dispersion_prior        # if it has one; else a parameter
        for each cell n:
            z_n ~ background_prior                   # shared by background and target cells
            s_n ~ salient_prior                      # used if n is a target cell, else exactly 0
            l_n ~ library_prior                      # or observed: l_n = total counts of the cell
            scale_n, ... = decoder(z_n, s_n, batch of n)
            x_n ~ likelihood(scale_n, ..., l_n)

    Sites: ``z``, ``s``, ``library`` (deterministic when observed), ``x``; for likelihoods that have
    them deterministic ``scale`` (normalised expression; rho, on the simplex over genes, for
    likelihoods with a scale head), ``rate`` (l * rho), ``mean_scale`` (E[x] / l, which counts
    structural zeros) and ``mean`` (E[x]); ``library`` is 1 where the likelihood does not use it.
    One plate, ``cells``. Each factor is a method that can be overridden: `z_dist`, `s_dist`,
    `library_dist`, `x_dist`.

    Parameters
    ----------
    n_input
        Number of genes.
    n_latent
        Dimension of z plus dimension of s.
    likelihood
        Observation model; it cannot belong to another model, because its heads are made here.
    background_prior, salient_prior
        Priors of z and s.
    library_prior
        Prior of the library size on the natural scale, event shape ``[1]``; ``None`` when the
        library size is observed.
    dispersion_prior
        Prior of the likelihood's table of inverse dispersions, event shape that of the table;
        ``None``: a parameter like any other.
    covariates
        Covariates that the decoder sees besides the latents.
    n_hidden, n_layers
        Width and number of the decoder's hidden layers; with none, the heads are linear in the
        latents.

    Raises
    ------
    ValueError
        If the library size is latent and the likelihood does not use one.
    """

    def __init__(
        self,
        *,
        n_input: int,
        n_latent: int,
        likelihood: Likelihood,
        background_prior: Prior,
        salient_prior: Prior,
        library_prior: Prior | None,
        dispersion_prior: Prior | None = None,
        covariates: Covariates,
        n_hidden: int,
        n_layers: int,
    ) -> None:
        super().__init__()
        self.n_input = n_input
        if library_prior is not None and not likelihood.uses_library:
            msg = (
                f"{type(likelihood).__name__} has no library size that could be latent: use "
                "use_observed_lib_size=True, and no library_prior."
            )
            raise ValueError(msg)
        self.covariates = covariates
        self.decoder = Body(n_latent, covariates.n_out, n_hidden, n_layers, dropout_rate=0.0)
        likelihood.build(self.decoder.n_out, n_input, covariates.n_batch)
        self.likelihood = likelihood
        self.background_prior = background_prior
        self.salient_prior = salient_prior
        self.library_prior = library_prior
        self.dispersion_prior = dispersion_prior

    def forward(self, batch: CellBatch) -> Tensor:
        """Run the generative model for the cells of `batch`; return counts ``[cells, genes]``."""
        shared = self.shared(batch)
        with pyro.plate(CELLS, len(batch), dim=-1):
            z, s, library = self.latents(batch)
            heads = self.decode(z, s, batch, shared)
            if _expression.get():
                for name, value in self.expression(heads, library):
                    pyro.deterministic(name, value, event_dim=1)
            drawn = [self.observe(m, heads, library, batch) for m in self.modalities]
        return drawn[0]

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities observed in each cell: the counts of genes."""
        return (Modality(X, self.likelihood, self.n_input),)

    def observe(
        self, modality: Modality, heads: Mapping[str, Tensor], library: Tensor, batch: CellBatch
    ) -> Tensor:
        """Observe a modality, or draw it where the batch has none: ``[cells, features]``.

        Its distribution is what the method ``<site>_dist`` returns, such as `x_dist`.
        """
        site = modality.site
        distribution = getattr(self, f"{site}_dist")(heads, library, batch)
        value: Tensor = pyro.sample(
            site, distribution, obs=batch.observed.get(site, NOTHING).values
        )
        return value

    def shared(self, batch: CellBatch) -> dict[str, Tensor]:
        """Draw the parameters that have a prior, once for all cells, by the names of their sites.

        Override it together with :meth:`ContrastiveGuide.shared` to give other parameters a prior;
        the objective counts sites outside the plate of cells once per data set.
        """
        if self.dispersion_prior is None:
            return {}
        return {
            INVERSE_DISPERSION: pyro.sample(INVERSE_DISPERSION, self.dispersion_prior(batch)),
        }

    def latents(self, batch: CellBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Draw z, s and the library size, ``[cells, latents]`` and ``[cells, 1]``."""
        z = pyro.sample("z", self.z_dist(batch))
        s = pyro.sample("s", self.s_dist(batch))
        s = self.used_salient(s, batch)
        library: Tensor
        if self.library_prior is None:
            library = self.observed_library(batch, like=z)
            library = pyro.deterministic("library", library, event_dim=1)
        else:
            library = pyro.sample("library", self.library_dist(batch))
        return z, s, library

    def used_salient(self, s: Tensor, batch: CellBatch) -> Tensor:
        """Return the salient latent as the decoder sees it: exactly 0 where a cell has none.

        A background cell has none, and other cells lack the dimensions that the salient prior does
        not use in them.
        """
        s = torch.where(batch.is_target.unsqueeze(-1), s, 0.0)
        used = self.salient_prior.used(batch)
        return s if used is None else torch.where(used, s, 0.0)

    def observed_library(self, batch: CellBatch, like: Tensor) -> Tensor:
        """Return the observed library size, ``[cells, 1]``; 1 if the likelihood does not use it.

        Parameters
        ----------
        batch
            The cells.
        like
            A tensor with the dtype and device to use.
        """
        if not self.likelihood.uses_library:
            return like.new_ones((len(batch), 1))
        return batch.observed_library()

    def z_dist(self, batch: CellBatch) -> Distribution:
        """p(z): event shape ``[n_background_latent]``."""
        return self.background_prior(batch)

    def s_dist(self, batch: CellBatch) -> Distribution:
        """p(s) of a target cell: event shape ``[n_salient_latent]``."""
        return self.salient_prior(batch)

    def library_dist(self, batch: CellBatch) -> Distribution:
        """p(l) on the natural scale: event shape ``[1]``. Only used when the library is latent."""
        if self.library_prior is None:
            msg = "The library size is observed in this model; it has no prior."
            raise ValueError(msg)
        return self.library_prior(batch)

    def decode(
        self, z: Tensor, s: Tensor, batch: CellBatch, shared: Mapping[str, Tensor] | None = None
    ) -> MutableMapping[str, Tensor]:
        """Apply the decoder: the likelihood's heads by name, each ``[..., cells, genes]``.

        Parameters
        ----------
        z, s
            Latents, ``[..., cells, latents]``.
        batch
            The cells, for their covariates.
        shared
            What :meth:`shared` returned; default the likelihood's own parameters.
        """
        latent = torch.cat([z, s], dim=-1)  # [..., cells, n_background + n_salient]
        hidden = self.decoder(latent, self.covariates(batch, like=latent))
        return self.likelihood.decode(hidden, batch, shared or {})

    def expression(
        self, heads: Mapping[str, Tensor], library: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the deterministic sites, from `scale` to `mean`, that the likelihood has.

        They are made lazily, so stopping at `scale` skips the others.
        """
        scale = self.likelihood.expression(heads)
        if scale is not None:
            yield "scale", scale
        rate = self.likelihood.rate(heads, library)
        if rate is not None:
            yield "rate", rate
        mean_scale = self.likelihood.mean_scale(heads, library)
        if mean_scale is not None:
            yield "mean_scale", mean_scale
            if self.likelihood.uses_library:
                yield "mean", library * mean_scale

    def x_dist(
        self, heads: Mapping[str, Tensor], library: Tensor, batch: CellBatch
    ) -> Distribution:
        """p(x | z, s, l): event shape ``[genes]``."""
        return self.likelihood(heads, library)
