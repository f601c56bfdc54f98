"""The guide q(z, s, l | x) as a Pyro program: mean-field, and the base of other families."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_contrastive._tools.pyro_names import NamedPyroModule
from pyro_contrastive._tools.site_moments import sampled_correlations, sampled_mean, sampled_moments
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.components.component import PACKAGE, Component
from pyro_contrastive.likelihoods import INVERSE_DISPERSION, Likelihood
from pyro_contrastive.model import CELLS
from pyro_contrastive.networks import Encoder, MoleculeDropout
from pyro_contrastive.observed.sparse_rows import SparseRows
from pyro_contrastive.outline import ModelOutline

Moments = tuple[Tensor, Tensor]
"""Mean and variance of a latent, each ``[cells, latents]``; of the log for a positive one."""
MOMENTS = "moments"
"""Entry of a site's ``infer`` with the moments from which its distribution was made."""


class _GuideMeta(type(NamedPyroModule), ABCMeta):  # type: ignore[misc]  # of two bases at run time
    """Metaclass of a component that is also a Pyro module."""


class ContrastiveGuide(NamedPyroModule, Component, metaclass=_GuideMeta):
    """Mean-field amortised posterior of contrastiveVI, the default, and the base of other guides.

    ::

        for each cell n:
            z_n ~ Normal(mean_z(x_n), variance_z(x_n))
            s_n ~ Normal(mean_s(x_n), variance_s(x_n))     # in the ELBO for target cells only
            l_n ~ LogNormal(mean_l(x_n), variance_l(x_n))  # if the library size is latent
        inverse dispersion ~ its posterior                 # if it has a prior

    q(s | x) is computed for background cells too, because penalties and diagnostics use it; the
    objective leaves it out of the ELBO.

    For a posterior of your own, subclass it. Override :meth:`encode` for other moments,
    :meth:`draw` for another distribution with these moments, or :meth:`forward` for another program
    altogether; make layers in :meth:`build`, after that of the base class. The program draws the
    sites of the model and no others, in a plate ``cells``, and what it draws of z and of the
    library size of a background cell must not depend on its s, which the ELBO leaves out.
    :func:`pyro_contrastive.testing.check_guide` checks it.

    Examples
    --------
    A guide that is twice as wide:

    >>> class WideGuide(ContrastiveGuide):
    ...     def encode(self, batch, only=None):
    ...         found = super().encode(batch, only)
    ...         return {site: (mean, 4 * variance) for site, (mean, variance) in found.items()}
    """

    def build(self, outline: ModelOutline) -> None:
        """Make the encoders, once the model is known. Called by the model, once.

        Parameters
        ----------
        outline
            Sizes and parts of the model.

        Raises
        ------
        ValueError
            If the guide already belongs to a model.
        """
        if "z_encoder" in self._modules:
            msg = (
                f"This {type(self).__name__} object already belongs to a model. Make a new one "
                "for every model; otherwise the two would train each other's encoders."
            )
            raise ValueError(msg)
        self.encoder_input = outline.encoder_input
        default = getattr(outline.encoder_input, "__func__", outline.encoder_input)
        self.takes_logs = default in {torch.log1p, Likelihood.encoder_input}
        if self.takes_logs:  # otherwise the data need not be counts
            self.molecule_dropout = MoleculeDropout()
        self.positive = frozenset(outline.positive)
        self.used_salient = outline.used_salient
        self.dispersion_posterior = outline.dispersion_posterior
        self.covariates = outline.covariates
        self.z_encoder = self._encoder(outline, outline.n_background_latent)
        self.s_encoder = self._salient_encoder(outline)
        self.library_encoder = None
        if outline.library_log_mean is not None:
            self.library_encoder = self._encoder(outline, 1, n_layers=1)
            nn.init.constant_(self.library_encoder.mean.bias, outline.library_log_mean)

    def _salient_encoder(self, outline: ModelOutline) -> Encoder:
        return self._encoder(outline, outline.n_salient_latent)

    @staticmethod
    def _encoder(
        outline: ModelOutline, n_output: int, n_layers: int | None = None, n_seen: int = 0
    ) -> Encoder:
        """Make an encoder that sees the counts, the covariates and `n_seen` further numbers."""
        return Encoder(
            outline.n_input,
            n_output,
            n_covariates=outline.covariates.n_out + n_seen,
            n_hidden=outline.n_hidden,
            n_layers=outline.n_layers if n_layers is None else n_layers,
            dropout_rate=outline.dropout_rate,
        )

    def forward(self, batch: CellBatch) -> None:
        """Encode the counts of `batch` and draw the latents."""
        self.draw(self.encode(batch), batch)

    def restricted_to(self, site: str) -> Callable[[CellBatch], None]:
        """Return a program that draws one latent as the guide does.

        If given x no latent depends on another, only that one is encoded and drawn; otherwise this
        is the whole guide.
        """
        if not self.is_mean_field or self._overrides("encode"):
            return self
        return lambda batch: self.draw(self.encode(batch, only=site), batch)

    @property
    def is_mean_field(self) -> bool:
        """Whether latents are independent given x: they are drawn by the program of this class."""
        own = (type(self).forward, type(self).draw)
        return own == (ContrastiveGuide.forward, ContrastiveGuide.draw)

    @property
    def sites(self) -> tuple[str, ...]:
        """The latents in the plate of cells, in the order of the model."""
        return ("z", "s") if self.library_encoder is None else ("z", "s", "library")

    def encode(self, batch: CellBatch, only: str | None = None) -> dict[str, Moments]:
        """Evaluate the encoders: mean and variance of z, s and, if latent, the log library size.

        Parameters
        ----------
        batch
            The cells.
        only
            The only latent to encode; default all.

        Raises
        ------
        ValueError
            If the batch carries no counts to condition on.
        """
        encoders = {"z": self.z_encoder, "s": self.s_encoder}
        if self.library_encoder is not None:
            encoders["library"] = self.library_encoder
        if only is not None:
            encoders = {name: encoder for name, encoder in encoders.items() if name == only}
        covariates = self.covariates(batch, like=self.z_encoder.mean.weight)
        if batch.rows is not None and self.takes_logs:
            logs = self._sparse_input(batch.rows)  # made once for all encoders
            moments = {
                name: encoder.of_product(logs.linear(encoder.input_weight), covariates)
                for name, encoder in encoders.items()
            }
        else:
            x = self._dense_input(batch)
            moments = {name: encoder(x, covariates) for name, encoder in encoders.items()}
        if "s" in moments:
            moments["s"] = self._where_used(moments["s"], batch)
        return moments

    def _sparse_input(self, rows: SparseRows) -> SparseRows:
        """Return the same as :meth:`_dense_input`, as sparse rows."""
        logs, counts = rows.log1p(), rows.cells_by_genes.values
        return logs.with_values(self.molecule_dropout(logs.cells_by_genes.values, counts))

    def _dense_input(self, batch: CellBatch) -> Tensor:
        """Return the input of the encoders, ``[cells, genes]``."""
        if batch.x is None:
            msg = "The guide needs observed counts: this CellBatch was made without `x`."
            raise ValueError(msg)
        x = self.encoder_input(batch.x)
        return self.molecule_dropout(x, batch.x) if self.takes_logs else x

    @property
    def needs_dense(self) -> bool:
        """Whether it needs ``x`` itself, besides sparse rows: a subclass may read it."""
        return not self.takes_logs or self._overrides("encode", "forward", "draw")

    def _overrides(self, *methods: str) -> bool:
        """Tell whether a class outside the library overrides one of these methods."""
        # A method made by `exec` may have no module.
        modules = [getattr(type(self), name).__module__ or "" for name in methods]
        return not all(module.startswith(f"{PACKAGE}.") for module in modules)

    def _where_used(self, moments: Moments, batch: CellBatch) -> Moments:
        used = self.used_salient(batch)
        if used is None:
            return moments
        mean, variance = moments
        return torch.where(used, mean, 0.0), torch.where(used, variance, 1.0)

    def is_positive(self, site: str) -> bool:
        """Whether a latent is positive, so that its logarithm has the moments."""
        return site == "library" or site in self.positive

    def _real(self, site: str, value: Tensor, there: Tensor | None = None) -> Tensor:
        """Return a draw on the scale of its moments, whatever it is where it is not `there`."""
        if not self.is_positive(site):
            return value
        return (value if there is None else torch.where(there, value, 1.0)).log()

    def marginals(self, batch: CellBatch, only: str | None = None) -> dict[str, Moments]:
        """Mean and variance of each latent's marginal distribution, whatever it depends on.

        This is what to use as *the* posterior of a latent. Here it is what :meth:`encode` returns;
        a guide without a closed form (:meth:`has_closed_marginal`) finds it from 200 draws with a
        fixed seed.

        Parameters
        ----------
        batch
            The cells.
        only
            The only latent; default all.

        Returns
        -------
        By site, each ``[cells, latents]``; of the logarithm of a positive latent.
        """
        asked = [site for site in self.sites if only in {None, site}]
        if not all(map(self.has_closed_marginal, asked)):
            found = sampled_moments(self, batch, CELLS, self.positive | {"library"})
            found["s"] = self._where_used(found["s"], batch)
        else:
            found = self.encode(batch) if self._overrides("encode") else self.encode(batch, only)
        return {site: found[site] for site in asked}

    def posterior_mean(self, site: str, batch: CellBatch) -> Tensor:
        """Mean of a latent on the scale on which the model has it, ``[cells, latents]``."""
        if not self.has_closed_marginal(site):
            return sampled_mean(self, batch, CELLS, site)
        mean: Tensor = self.factor(site, *self.marginals(batch, site)[site]).mean
        return mean

    def normal(self, batch: CellBatch) -> Moments:
        """Mean and covariance of all latents of a cell together, in the order of :attr:`sites`.

        Where latents depend on each other and the covariance has no closed form, correlations are
        found from draws, as :meth:`marginals` are. s of a background cell, and dimensions of s that
        a cell lacks, are uncorrelated with the rest.

        Returns
        -------
        The mean, ``[cells, latents]``, and the lower-triangular factor L of the covariance L L',
        ``[cells, latents, latents]``; of the logarithm of positive latents.
        """
        moments = self.marginals(batch)
        mean, variance = (torch.cat([moments[s][i] for s in self.sites], -1) for i in (0, 1))
        return mean, variance.sqrt().unsqueeze(-1) * self._correlations(moments, batch)

    def _correlations(self, moments: dict[str, Moments], batch: CellBatch) -> Tensor:
        """Return the Cholesky factor of the correlations, ``[cells, latents, latents]``."""
        if self.is_mean_field:
            means = [moments[site][0] for site in self.sites]
            return torch.diag_embed(torch.ones_like(torch.cat(means, -1)))
        there = self._dependent(moments, batch)
        free = torch.cat([there[site] for site in self.sites], -1)
        return sampled_correlations(self, batch, CELLS, self.positive | {"library"}, free)

    def _dependent(self, moments: Mapping[str, Moments], batch: CellBatch) -> dict[str, Tensor]:
        """Tell which latents may depend on others, by site: boolean, of the shape of the moments.

        All but s of background cells, which is not part of their posterior, and the dimensions of s
        that the prior does not use.
        """
        there = {s: torch.ones_like(mean, dtype=torch.bool) for s, (mean, _) in moments.items()}
        there["s"] = there["s"] & batch.is_target.unsqueeze(-1)
        used = self.used_salient(batch)
        if used is not None:
            there["s"] = there["s"] & used
        return there

    def has_closed_marginal(self, site: str) -> bool:
        """Whether the moments of a latent in :meth:`encode` are those of its marginal distribution.

        By default they are, unless a class outside the library overrides `forward` or `draw`.
        """
        return not self._overrides("forward", "draw")

    def draw(self, moments: dict[str, Moments], batch: CellBatch) -> None:
        """Draw every latent in `moments` from the factor with these moments."""
        self.shared()
        with pyro.plate(CELLS, len(batch), dim=-1):
            for site, found in moments.items():
                self._sample(site, self.factor(site, *found), found)

    @staticmethod
    def _sample(site: str, distribution: Distribution, moments: Moments) -> Tensor:
        """Draw a latent, and note from which moments."""
        value: Tensor = pyro.sample(site, distribution, infer={MOMENTS: moments})
        return value

    def shared(self) -> None:
        """Draw the parameters that have a prior, once for all cells."""
        if self.dispersion_posterior is not None:
            pyro.sample(INVERSE_DISPERSION, self.dispersion_posterior())

    def factor(self, site: str, mean: Tensor, variance: Tensor) -> Distribution:
        """Return the independent posterior of a latent with these moments."""
        factors = {"z": self.z_dist, "s": self.s_dist, "library": self.library_dist}
        return factors[site](mean, variance)

    def z_dist(self, mean: Tensor, variance: Tensor) -> Distribution:
        """q(z | x): event shape ``[n_background_latent]``."""
        return self._factor("z", mean, variance)

    def s_dist(self, mean: Tensor, variance: Tensor) -> Distribution:
        """q(s | x): event shape ``[n_salient_latent]``."""
        return self._factor("s", mean, variance)

    def _factor(self, site: str, mean: Tensor, variance: Tensor) -> Distribution:
        family = dist.LogNormal if site in self.positive else dist.Normal
        return family(mean, variance.sqrt()).to_event(1)

    def library_dist(self, mean: Tensor, variance: Tensor) -> Distribution:
        """q(l | x) on the natural scale, from moments of the log: event shape ``[1]``."""
        return dist.LogNormal(mean, variance.sqrt()).to_event(1)
