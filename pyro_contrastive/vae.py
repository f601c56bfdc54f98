"""ContrastiveVAE: model and guide under one roof, with the reference module's methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from numpy.typing import ArrayLike
from pyro import poutine
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_contrastive import groups, likelihoods
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.given_outputs import GivenOutputs, counts_distribution
from pyro_contrastive.groups import Group, Groups, LossOutput
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.likelihoods import SCALE, Likelihood
from pyro_contrastive.model import ContrastiveModel
from pyro_contrastive.objective import contrastive_elbo, site_losses
from pyro_contrastive.penalties import Penalty, Wasserstein
from pyro_contrastive.priors import LogNormalLibrary, Prior, as_prior
from pyro_contrastive.torch_tools import evaluating, seeded


class ContrastiveVAE(nn.Module):
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
    likelihood
        Observation model; default :class:`~pyro_contrastive.ZeroInflatedNegativeBinomial`.
    background_prior, salient_prior
        A torch or Pyro distribution or a :class:`~pyro_contrastive.Prior`; default standard normal.
    penalties
        Further penalties.
    elbo
        :class:`pyro.infer.Trace_ELBO` (default) or :class:`pyro.infer.TraceMeanField_ELBO`, which
        uses analytic KL divergences as scvi-tools does.
    elbo_kwargs
        Further arguments of :class:`~pyro_contrastive.ContrastiveELBO`, e.g. ``num_particles``.

    Raises
    ------
    ValueError
        If a size is not positive, or the library size is latent and its prior is not given.

    Examples
    --------
    >>> import torch
    >>> vae = ContrastiveVAE(n_input=5, n_hidden=8, n_background_latent=2, n_salient_latent=2)
    >>> counts = torch.randint(0, 9, (6, 5)).float()
    >>> batch = CellBatch(condition=torch.tensor([0, 0, 0, 1, 1, 1]), x=counts)
    >>> vae.objective(vae.model, vae.guide)(batch).shape
    torch.Size([])
    """

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
        likelihood: Likelihood | None = None,
        background_prior: Prior | torch.distributions.Distribution | None = None,
        salient_prior: Prior | torch.distributions.Distribution | None = None,
        penalties: Sequence[Penalty] = (),
        elbo: type[Trace_ELBO] = Trace_ELBO,
        elbo_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "n_input": n_input,
            "n_hidden": n_hidden,
            "n_background_latent": n_background_latent,
            "n_salient_latent": n_salient_latent,
            "n_layers": n_layers,
        }
        for name, size in sizes.items():
            if size < 1:
                msg = f"{name} must be at least 1, not {size}."
                raise ValueError(msg)
        self.n_input = n_input
        self.n_batch = n_batch
        self.n_background_latent = n_background_latent
        self.n_salient_latent = n_salient_latent
        self.use_observed_lib_size = use_observed_lib_size
        shared = {"n_batch": n_batch, "n_hidden": n_hidden, "n_layers": n_layers}
        self.model = ContrastiveModel(
            n_input=n_input,
            n_latent=n_background_latent + n_salient_latent,
            likelihood=likelihood or likelihoods.ZeroInflatedNegativeBinomial(),
            background_prior=as_prior(background_prior, n_background_latent, "background_prior"),
            salient_prior=as_prior(salient_prior, n_salient_latent, "salient_prior"),
            library_prior=self._library_prior(library_log_means, library_log_vars),
            **shared,
        )
        self.guide = ContrastiveGuide(
            n_input=n_input,
            n_background_latent=n_background_latent,
            n_salient_latent=n_salient_latent,
            latent_library=not use_observed_lib_size,
            dropout_rate=dropout_rate,
            **shared,
        )
        wasserstein = [Wasserstein(wasserstein_penalty)] if wasserstein_penalty else []
        self.penalties = nn.ModuleList([*wasserstein, *penalties])
        self.objective = contrastive_elbo(elbo, self.penalties, **(elbo_kwargs or {}))

    def _library_prior(
        self, log_means: ArrayLike | None, log_vars: ArrayLike | None
    ) -> LogNormalLibrary | None:
        if self.use_observed_lib_size:
            return None
        if log_means is None or log_vars is None:
            msg = (
                "With use_observed_lib_size=False the library size has a prior: give "
                "library_log_means and library_log_vars, one number per batch."
            )
            raise ValueError(msg)
        prior = LogNormalLibrary(log_means, log_vars)
        if prior.log_means.numel() != max(self.n_batch, 1):
            msg = (
                f"library_log_means has {prior.log_means.numel()} entries, but there are "
                f"{max(self.n_batch, 1)} batches."
            )
            raise ValueError(msg)
        return prior

    def inference(self, background: Group, target: Group, n_samples: int = 1) -> Groups:
        """Encode both groups of cells and draw their latents from the posterior.

        Parameters
        ----------
        background, target
            Each a dict with ``x`` (counts, ``[cells, genes]``) and ``batch_index``
            (``[cells, 1]``). The groups may differ in size.
        n_samples
            Number of independent draws. If larger than 1, every output gets a leading axis of
            draws.

        Returns
        -------
        ``{"background": ..., "target": ...}``, each a dict with ``z, qz_m, qz_v, s, qs_m, qs_v,
        library, ql_m, ql_v``, ``[cells, latents]`` or ``[n_samples, cells, latents]``. ``library``,
        ``ql_m`` and ``ql_v`` are on the log scale, the latter two ``None`` when the library size is
        observed. The ``s`` of background cells is exactly 0.
        """
        batch = groups.join_counts(background, target, "x", "batch_index")
        guide = self.guide
        if n_samples > 1:
            guide = pyro.plate("samples", n_samples, dim=-2)(guide)
        trace = poutine.trace(guide).get_trace(batch)
        return groups.split(groups.posterior_outputs(trace, batch), len(background["x"]))

    def generative(self, background: Group, target: Group) -> Groups:
        """Decode both groups of cells.

        Parameters
        ----------
        background, target
            Each a dict with ``z``, ``s`` and ``library`` (log scale), ``[cells, .]`` or
            ``[n_samples, cells, .]``, and ``batch_index`` ``[cells, 1]``. ``s`` is decoded as
            given, for both groups: `inference` returns 0 for background cells.

        Returns
        -------
        ``{"background": ..., "target": ...}``, each a dict with ``px_scale``, ``px_rate``,
        ``px_dropout`` (``None`` without zero inflation), each ``[..., cells, genes]``, and ``px_r``
        (inverse dispersion ``[genes]``, or ``None``). Any further head of the likelihood is there
        too, as ``px_<head>``.
        """
        inputs = {"background": dict(background), "target": dict(target)}
        z, s, library = (groups.join(inputs, key) for key in ("z", "s", "library"))
        codes = torch.cat([inputs[name]["batch_index"] for name in groups.GROUPS]).reshape(-1)
        n_background = background["z"].shape[-2]
        condition = groups.conditions(n_background, len(codes) - n_background, codes.device)
        batch = CellBatch(condition=condition, batch=codes)
        heads = self.model.decode(z, s, batch)
        outputs = {"px_scale": None, "px_rate": None, "px_dropout": None}
        outputs |= {f"px_{name}": value for name, value in heads.items()}
        if SCALE in heads:
            outputs["px_rate"] = library.exp() * heads[SCALE]
        split = groups.split(outputs, n_background)
        log_px_r = getattr(self.model.likelihood, "log_inverse_dispersion", None)
        for group in split.values():
            group["px_r"] = None if log_px_r is None else log_px_r.exp()
        return split

    def loss(
        self,
        concat_tensors: dict[str, Group],
        inference_outputs: Groups,
        generative_outputs: Groups,
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Return the loss of what `inference` and `generative` returned for these cells.

        It is the objective's loss, with analytic KL divergences, of model and guide run with the
        draws and distributions given: the encoders and the decoder are not evaluated again.

        Parameters
        ----------
        concat_tensors
            ``concat_tensors[group]`` has the counts ``"X"`` and the batch codes ``"batch"``.
        inference_outputs, generative_outputs
            What `inference` and `generative` returned.
        kl_weight
            Weight of the KL divergences of z and s and of the penalties, relative to the
            likelihood and to the KL divergence of the library size.

        Returns
        -------
        See :class:`~pyro_contrastive.groups.LossOutput`.
        """
        background, target = (concat_tensors[name] for name in groups.GROUPS)
        batch = groups.join_counts(background, target, "X", "batch")
        given = GivenOutputs(self.model, self.guide, inference_outputs, generative_outputs)
        objective = contrastive_elbo(TraceMeanField_ELBO, self.penalties, **given.particles)
        objective.kl_weight = kl_weight
        (traces,) = objective._get_traces(given.model, given.guide, (batch,), {})  # noqa: SLF001
        _, loss = objective._differentiable_loss_particle(*traces)  # noqa: SLF001
        n_background = len(background["X"])
        terms = site_losses(*traces, analytic=True)
        pairs = {name: groups.pair(term, n_background) for name, term in terms.items()}
        # A masked site's pair is the target cell's term alone: the background part is 0.
        none = torch.zeros_like(pairs["z"])
        extra = {p.name: objective.terms[p.name] for p in self.penalties}
        if "wasserstein" in extra:
            extra["wasserstein_loss_sum"] = extra["wasserstein"] * none.numel()
        return LossOutput(
            loss=loss / objective.num_particles,
            reconstruction_loss={"reconstruction_loss": pairs["x"]},
            kl_local={f"kl_divergence_{k[0]}": pairs.get(k, none) for k in ("library", "z", "s")},
            extra_metrics=extra,
        )

    @staticmethod
    def reconstruction_loss(
        x: Tensor, px_rate: Tensor, px_r: Tensor, px_dropout: Tensor | None
    ) -> Tensor:
        """Return -log ZINB(x), summed over genes: ``[..., cells]``.

        Parameters
        ----------
        x
            Counts, ``[cells, genes]``.
        px_rate
            Mean before zero inflation, ``[..., cells, genes]``.
        px_r
            Inverse dispersion, ``[genes]`` (or anything that broadcasts).
        px_dropout
            Zero-inflation logits, ``[..., cells, genes]``; ``None``: negative binomial.
        """
        return -counts_distribution(px_rate, px_r, px_dropout).log_prob(x)

    @staticmethod
    def latent_kl_divergence(
        variational_mean: Tensor,
        variational_var: Tensor,
        prior_mean: Tensor,
        prior_var: Tensor,
    ) -> Tensor:
        """Return KL(N(mean, var) || N(prior mean, prior var)), summed over latents: ``[..., cells]``."""
        q = Normal(variational_mean, variational_var.sqrt())
        p = Normal(prior_mean, prior_var.sqrt())
        return kl_divergence(q.to_event(1), p.to_event(1))

    def library_kl_divergence(
        self,
        batch_index: Tensor,
        variational_library_mean: Tensor | None,
        variational_library_var: Tensor | None,
        library: Tensor,
    ) -> Tensor:
        """Return KL(q(l | x) || p(l)) per cell, ``[..., cells]``; 0 when the library is observed.

        Parameters
        ----------
        batch_index
            Batch codes, ``[cells, 1]``.
        variational_library_mean, variational_library_var
            Mean and variance of the log library size under the posterior, ``[..., cells, 1]``.
        library
            Log library size; only its shape is used, when the library size is observed.
        """
        if variational_library_mean is None or variational_library_var is None:
            return torch.zeros_like(library).sum(-1)
        codes = batch_index.reshape(-1)
        prior = self.model.library_dist(CellBatch(condition=torch.ones_like(codes), batch=codes))
        q = self.guide.library_dist(variational_library_mean, variational_library_var)
        return kl_divergence(q, prior)

    def sample(
        self,
        n_cells: int,
        condition: int | Tensor = 1,
        batch: int | Tensor = 0,
        library: float | Tensor | None = None,
        *,
        return_latents: bool = False,
        seed: int | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Draw cells from the learned model: latents from their priors, counts from the likelihood.

        Parameters
        ----------
        n_cells
            How many cells.
        condition
            0 for background cells, 1..K for treated ones; one for all, or one per cell.
        batch
            Batch code; one for all, or one per cell.
        library
            Library size (total counts), natural scale; one for all, or one per cell. Required when
            the library size is observed; default when it is latent: drawn from its prior.
        return_latents
            Return the latents too.
        seed
            Seed; default: torch's global state (``pyro.set_rng_seed``).

        Returns
        -------
        Counts ``[n_cells, genes]``; with `return_latents` a dict with ``x``, ``z``, ``s``,
        ``library`` (natural scale), and ``scale`` and ``rate`` if the likelihood has them.

        Raises
        ------
        ValueError
            If the library size is observed and none is given.
        """
        device = next(self.parameters()).device

        def per_cell(value: float | Tensor, dtype: torch.dtype | None = None) -> Tensor:
            return torch.as_tensor(value, dtype=dtype, device=device).expand(n_cells)

        cells = CellBatch(
            condition=per_cell(condition),
            batch=per_cell(batch),
            library=None if library is None else per_cell(library, torch.float32).unsqueeze(-1),
        )
        model = self.model
        if library is not None and not self.use_observed_lib_size:
            model = poutine.condition(model, {"library": cells.library})
        with evaluating(self), seeded(seed):
            sites = poutine.trace(model).get_trace(cells).nodes
        if not return_latents:
            return sites["x"]["value"]  # type: ignore[no-any-return]
        names = [n for n in ("x", "z", "s", "library", "scale", "rate") if n in sites]
        drawn = {name: sites[name]["value"] for name in names}
        drawn["s"] = torch.where(cells.is_target.unsqueeze(-1), drawn["s"], 0.0)
        return drawn
