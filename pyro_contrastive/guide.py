"""The guide q(z | x) q(s | x) q(l | x), as a Pyro program."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_contrastive._tools.pyro_names import NamedPyroModule
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.likelihoods import INVERSE_DISPERSION, Likelihood
from pyro_contrastive.likelihoods.dispersion import DispersionPosterior
from pyro_contrastive.model import CELLS
from pyro_contrastive.networks import Covariates, Encoder

Moments = tuple[Tensor, Tensor]
"""Mean and variance of a latent, each ``[cells, latents]``; of the log for a positive one."""


class ContrastiveGuide(NamedPyroModule):
    """Mean-field amortised posterior of contrastiveVI.

    ::

        for each cell n:
            z_n ~ Normal(mean_z(x_n), variance_z(x_n))
            s_n ~ Normal(mean_s(x_n), variance_s(x_n))     # in the ELBO for target cells only
            l_n ~ LogNormal(mean_l(x_n), variance_l(x_n))  # if the library size is latent
        inverse dispersion ~ its posterior                 # if it has a prior

    q(s | x) is computed for background cells too, because penalties and diagnostics use it; the
    objective leaves it out of the ELBO.

    Parameters
    ----------
    n_input
        Number of genes.
    n_background_latent, n_salient_latent
        Dimensions of z and s.
    library_log_mean
        Typical log library size, at which q(l | x) starts; ``None``: the library size is observed.
        An encoder that starts at 0, as in scvi-tools, needs hundreds of epochs to get there. It
        always has one hidden layer.
    covariates
        Covariates that the encoders see besides the counts.
    n_hidden, n_layers, dropout_rate
        Width and number of hidden layers of each encoder, and their dropout.
    positive
        Which of ``"z"`` and ``"s"`` are positive: their posterior is log-normal, and the encoded
        mean and variance are those of the logarithm.
    used_salient
        Function that returns the dimensions of s that a cell has: :meth:`Prior.used` of the salient
        prior.
    dispersion_posterior
        Posterior of the inverse dispersions, if they have a prior.
    encoder_input
        Transforms the data for the encoders; default ``log(1 + x)``.
    """

    def __init__(
        self,
        *,
        n_input: int,
        n_background_latent: int,
        n_salient_latent: int,
        library_log_mean: float | None,
        covariates: Covariates,
        n_hidden: int,
        n_layers: int,
        dropout_rate: float,
        positive: Collection[str] = (),
        used_salient: Callable[[CellBatch], Tensor | None] = lambda _: None,
        dispersion_posterior: DispersionPosterior | None = None,
        encoder_input: Callable[[Tensor], Tensor] = torch.log1p,
    ) -> None:
        super().__init__()
        self.encoder_input = encoder_input
        default = getattr(encoder_input, "__func__", encoder_input)
        self.takes_logs = default in {torch.log1p, Likelihood.encoder_input}
        self.positive = frozenset(positive)
        self.used_salient = used_salient
        self.dispersion_posterior = dispersion_posterior
        self.covariates = covariates

        def encoder(n_output: int, n_layers: int) -> Encoder:
            return Encoder(
                n_input,
                n_output,
                n_covariates=covariates.n_out,
                n_hidden=n_hidden,
                n_layers=n_layers,
                dropout_rate=dropout_rate,
            )

        self.z_encoder = encoder(n_background_latent, n_layers)
        self.s_encoder = encoder(n_salient_latent, n_layers)
        self.library_encoder = None
        if library_log_mean is not None:
            self.library_encoder = encoder(1, n_layers=1)
            nn.init.constant_(self.library_encoder.mean.bias, library_log_mean)

    def forward(self, batch: CellBatch) -> None:
        """Encode the counts of `batch` and draw the latents."""
        self.draw(self.encode(batch), batch)

    def restricted_to(self, site: str) -> Callable[[CellBatch], None]:
        """Return the guide of one latent only: given x, no latent depends on another.

        For a subclass with a program of its own, where latents may depend on each other, this is
        the whole guide.
        """
        if self._is_own_program:
            return self
        return lambda batch: self.draw(self.encode(batch, only=site), batch)

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
            logs = batch.rows.log1p()  # made once for all encoders
            moments = {
                name: encoder.of_product(logs.linear(encoder.input_weight), covariates)
                for name, encoder in encoders.items()
            }
        elif batch.x is None:
            msg = "The guide needs observed counts: this CellBatch was made without `x`."
            raise ValueError(msg)
        else:
            x = self.encoder_input(batch.x)  # [cells, genes]
            moments = {name: encoder(x, covariates) for name, encoder in encoders.items()}
        if "s" in moments:
            moments["s"] = self._where_used(moments["s"], batch)
        return moments

    @property
    def needs_dense(self) -> bool:
        """Whether it needs ``x`` itself, besides sparse rows: a subclass may read it."""
        return not self.takes_logs or self._is_own_program

    @property
    def draws_from_moments(self) -> bool:
        """Whether the latents are drawn from the moments of :meth:`encode`.

        A subclass with a program of its own may draw them otherwise.
        """
        own = (type(self).forward, type(self).draw)
        return own == (ContrastiveGuide.forward, ContrastiveGuide.draw)

    @property
    def _is_own_program(self) -> bool:
        own = (type(self).encode, type(self).forward, type(self).draw)
        known = (ContrastiveGuide.encode, ContrastiveGuide.forward, ContrastiveGuide.draw)
        return own != known

    def _where_used(self, moments: Moments, batch: CellBatch) -> Moments:
        used = self.used_salient(batch)
        if used is None:
            return moments
        mean, variance = moments
        return torch.where(used, mean, 0.0), torch.where(used, variance, 1.0)

    def draw(self, moments: dict[str, Moments], batch: CellBatch) -> None:
        """Draw every latent in `moments` from the factor with these moments."""
        self.shared()
        factors = {"z": self.z_dist, "s": self.s_dist, "library": self.library_dist}
        with pyro.plate(CELLS, len(batch), dim=-1):
            for site, (mean, variance) in moments.items():
                pyro.sample(site, factors[site](mean, variance))

    def shared(self) -> None:
        """Draw the parameters that have a prior, once for all cells."""
        if self.dispersion_posterior is not None:
            pyro.sample(INVERSE_DISPERSION, self.dispersion_posterior())

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
