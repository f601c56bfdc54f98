"""ContrastiveVAE: model, guide and objective in one module, with the reference's methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive._tools.threads import one_thread
from pyro_contrastive.components.parts import (
    guide_given,
    library_prior_given,
    likelihood_given,
    parts_of,
    penalties_given,
    positive_sites,
    register_owned,
    typical_log_library,
)
from pyro_contrastive.components.seen_cells import SeenCells
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.interop.module.methods import ReferenceMethods
from pyro_contrastive.interop.module.sampling import Sampling
from pyro_contrastive.likelihoods import Likelihood
from pyro_contrastive.likelihoods.dispersion import (
    DispersionPosterior,
    Posterior,
    dispersion_factors,
)
from pyro_contrastive.model import ContrastiveModel
from pyro_contrastive.networks import Covariates
from pyro_contrastive.objective import contrastive_elbo
from pyro_contrastive.outline import ModelOutline
from pyro_contrastive.penalties import Penalty, Wasserstein
from pyro_contrastive.priors import PriorLike, as_prior


class ContrastiveVAE(ReferenceMethods, Sampling, nn.Module):
    """contrastiveVI as a Pyro model/guide pair (Weinberger, Lin & Lee, Nature Methods 2023).

    ``vae.model`` and ``vae.guide`` are Pyro modules, ``vae.objective`` is a Pyro ELBO; each takes a
    :class:`~pyro_contrastive.CellBatch`. Train them with plain Pyro::

        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), vae.objective)
        loss = svi.step(batch)

    or with torch: ``loss = vae.objective(vae.model, vae.guide)(batch); loss.backward()``. The
    positional arguments and defaults are those of scvi-tools' ``ContrastiveVAE``, and so are the
    methods `inference`, `generative` and `loss`, which run the same model and guide.

    Parameters
    ----------
    n_input
        Number of genes.
    n_batch
        Number of batches. If 0 or 1, no batch correction is performed.
    n_hidden
        Width of the hidden layers.
    n_background_latent, n_salient_latent
        Dimensions of the background latent z and of the salient latent s.
    n_layers
        Number of hidden layers of each encoder and of the decoder.
    dropout_rate
        Dropout in the encoders.
    use_observed_lib_size
        Take a cell's total count as its library size (default), or make it a latent variable.
    library_log_means, library_log_vars
        Mean and variance of the log library size of each batch, one number per batch; required
        when the library size is latent.
    wasserstein_penalty
        Weight of the :class:`~pyro_contrastive.Wasserstein` penalty; 0 for none.
    n_cats_per_cov, n_continuous_cov
        Number of levels of each further categorical covariate, and number of continuous ones; both
        are inputs of encoders and decoder.
    likelihood
        Observation model; default :class:`~pyro_contrastive.ZeroInflatedNegativeBinomial`.
    background_prior, salient_prior
        A torch or Pyro distribution or a :class:`~pyro_contrastive.Prior`; default standard normal.
    library_prior
        Prior of a latent library size on the natural scale, e.g. ``dist.LogNormal(8., .5)``;
        default: log-normal per batch, from `library_log_means` and `library_log_vars`.
    dispersion_prior
        Prior of the inverse dispersions, e.g. ``dist.Gamma(2., 1.)``, shared by all cells and
        weighted once per data set; default none.
    guide
        Family of the posterior q(z, s, l | x). Default :class:`~pyro_contrastive.ContrastiveGuide`:
        given x, all latents are independent. Others are
        :class:`~pyro_contrastive.FullCovarianceGuide`, :class:`~pyro_contrastive.LowRankGuide`,
        :class:`~pyro_contrastive.FlowGuide`, :class:`~pyro_contrastive.ConditionalGuide`, and
        subclasses of your own.
    dispersion_posterior
        With a `dispersion_prior`: ``"variational"`` (default), a log-normal posterior for each, or
        ``"map"``, the value of highest posterior density.
    n_layers_decoder
        Number of hidden layers of the decoder, if not `n_layers`. 0: the decoder's heads are linear
        in the latents (log-linear expression, with the default likelihood).
    penalties
        Penalties added to the loss, besides that of `wasserstein_penalty`.
    elbo
        :class:`pyro.infer.Trace_ELBO` (default) or :class:`pyro.infer.TraceMeanField_ELBO`, which
        uses analytic KL divergences as scvi-tools does.
    elbo_kwargs
        Further arguments of :class:`~pyro_contrastive.ContrastiveELBO`, e.g. ``num_particles``.

    Raises
    ------
    TypeError
        If a prior is neither a distribution nor a `Prior`, or has bounded support.
    ValueError
        If a size is not positive, or the library size is latent and has no prior.

    Examples
    --------
    >>> import torch
    >>> from pyro_contrastive import CellBatch
    >>> vae = ContrastiveVAE(n_input=5, n_hidden=8, n_background_latent=2, n_salient_latent=2)
    >>> counts = torch.randint(0, 9, (6, 5)).float()
    >>> batch = CellBatch(condition=torch.tensor([0, 0, 0, 1, 1, 1]), x=counts)
    >>> vae.objective(vae.model, vae.guide)(batch).shape
    torch.Size([])
    """

    @one_thread()  # initial weights are drawn
    def __init__(
        self,
        n_input: int,
        n_batch: int = 0,
        n_hidden: int = 128,
        n_background_latent: int = 10,
        n_salient_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        use_observed_lib_size: bool = True,
        library_log_means: ArrayLike | None = None,
        library_log_vars: ArrayLike | None = None,
        wasserstein_penalty: float = 0,
        *,
        n_cats_per_cov: Sequence[int] = (),
        n_continuous_cov: int = 0,
        likelihood: Likelihood | None = None,
        background_prior: PriorLike | None = None,
        salient_prior: PriorLike | None = None,
        library_prior: PriorLike | None = None,
        dispersion_prior: PriorLike | None = None,
        dispersion_posterior: Posterior = "variational",
        guide: ContrastiveGuide | None = None,
        n_layers_decoder: int | None = None,
        penalties: Sequence[Penalty] = (),
        elbo: type[Trace_ELBO] = Trace_ELBO,
        elbo_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_arguments(locals())
        self.n_input = n_input
        self.n_batch = n_batch
        self.n_background_latent = n_background_latent
        self.n_salient_latent = n_salient_latent
        self.use_observed_lib_size = use_observed_lib_size
        covariates = Covariates(n_batch, n_cats_per_cov, n_continuous_cov)
        likelihood = likelihood_given(likelihood)
        guide = guide_given(guide)
        # Without the penalty that `wasserstein_penalty` adds.
        self.given_penalties = penalties_given(penalties)
        self.model = ContrastiveModel(
            n_input=n_input,
            n_latent=n_background_latent + n_salient_latent,
            likelihood=likelihood,
            background_prior=as_prior(background_prior, n_background_latent, "background_prior"),
            salient_prior=as_prior(salient_prior, n_salient_latent, "salient_prior"),
            library_prior=library_prior_given(
                library_prior,
                library_log_means,
                library_log_vars,
                n_batch=n_batch,
                is_observed=use_observed_lib_size,
            ),
            covariates=covariates,
            n_hidden=n_hidden,
            n_layers=n_layers if n_layers_decoder is None else n_layers_decoder,
        )
        self.model.dispersion_prior, dispersion = dispersion_factors(
            dispersion_prior, likelihood, dispersion_posterior
        )
        guide.build(self._outline(dispersion, dropout_rate, n_hidden, n_layers))
        if not hasattr(guide, "positive"):
            msg = f"{type(guide).__name__}.build must call super().build(outline) first."
            raise AttributeError(msg)
        self.guide = guide
        # Priors made of posteriors, such as the VampPrior, need the encoders.
        self.model.background_prior.bind(guide.z_encoder)
        self.model.salient_prior.bind(guide.s_encoder)
        wasserstein = [Wasserstein(wasserstein_penalty)] if wasserstein_penalty else []
        self.penalties = nn.ModuleList([*wasserstein, *self.given_penalties])  # type: ignore[assignment]  # a sequence of penalties, registered with the module
        self.seen_cells = SeenCells()
        self.objective = contrastive_elbo(elbo, self.penalties, **(elbo_kwargs or {}))
        register_owned(parts_of(self.model, self.guide, self.penalties))

    def _outline(
        self,
        dispersion: DispersionPosterior | None,
        dropout_rate: float,
        n_hidden: int,
        n_layers: int,
    ) -> ModelOutline:
        """Describe the model to its guide, whose latents have the support of their priors."""
        model = self.model
        return ModelOutline(
            n_input=self.n_input,
            n_background_latent=self.n_background_latent,
            n_salient_latent=self.n_salient_latent,
            library_log_mean=typical_log_library(model.library_prior),
            positive=positive_sites(z=model.background_prior, s=model.salient_prior),
            used_salient=model.salient_prior.used,
            dispersion_posterior=dispersion,
            encoder_input=model.likelihood.encoder_input,
            dropout_rate=dropout_rate,
            covariates=model.covariates,
            n_hidden=n_hidden,
            n_layers=n_layers,
        )
