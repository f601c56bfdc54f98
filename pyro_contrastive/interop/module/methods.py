"""The methods of scvi-tools' ContrastiveVAE, run on our Pyro programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_contrastive._tools.threads import one_thread
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.interop.module import populations as groups
from pyro_contrastive.interop.module.given_outputs import GivenOutputs, counts_distribution
from pyro_contrastive.interop.module.populations import Group, Groups, LossOutput
from pyro_contrastive.likelihoods import INVERSE_DISPERSION
from pyro_contrastive.model import ContrastiveModel
from pyro_contrastive.objective import contrastive_elbo
from pyro_contrastive.penalties import Penalty, Wasserstein
from pyro_contrastive.sites import observed_sites, part_names, site_losses


class ReferenceMethods:
    """Mixin for :class:`~pyro_contrastive.ContrastiveVAE`: the methods of scvi-tools' module.

    Names, inputs and outputs are the same as in scvi-tools, so that its callers work unchanged. All
    of them run the model and the guide instead of implementing them again.
    """

    model: ContrastiveModel
    guide: ContrastiveGuide
    penalties: Sequence[Penalty]

    def forward(
        self,
        tensors: dict[str, Group],
        *,
        inference_kwargs: dict[str, Any] | None = None,
        loss_kwargs: dict[str, Any] | None = None,
        compute_loss: bool = True,
    ) -> tuple[Groups, Groups] | tuple[Groups, Groups, LossOutput]:
        """Run `inference`, `generative` and `loss`, one after the other.

        Parameters
        ----------
        tensors
            ``tensors["background"]`` and ``tensors["target"]`` have counts ``"X"``
            (``[cells, genes]``) and batch codes ``"batch"`` (``[cells, 1]``); and, if the model has
            further covariates, ``cat_covs`` and ``cont_covs``.
        inference_kwargs, loss_kwargs
            Arguments of `inference` (``n_samples``) and of `loss` (``kl_weight``).
        compute_loss
            Return the loss as well.

        Returns
        -------
        What `inference`, `generative` and, with `compute_loss`, `loss` return.
        """
        background, target = (
            dict(tensors[g]) | {"x": tensors[g]["X"], "batch_index": tensors[g]["batch"]}
            for g in groups.GROUPS
        )
        inferred = self.inference(background, target, **(inference_kwargs or {}))
        decoded = self.generative(background | inferred["background"], target | inferred["target"])
        if not compute_loss:
            return inferred, decoded
        return inferred, decoded, self.loss(tensors, inferred, decoded, **(loss_kwargs or {}))

    @one_thread()
    def inference(self, background: Group, target: Group, n_samples: int = 1) -> Groups:
        """Encode both groups of cells and draw their latents from the posterior.

        Parameters
        ----------
        background, target
            Each a dict with ``x`` (counts, ``[cells, genes]``) and ``batch_index``
            (``[cells, 1]``). The groups may differ in size.
        n_samples
            Number of independent draws. If larger than 1, every output has a leading axis of
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
        outputs = groups.posterior_outputs(trace, batch)
        outputs["s"] = self.model.used_salient(trace.nodes["s"]["value"], batch)
        return groups.split(outputs, len(background["x"]))

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
        (inverse dispersion, ``[genes]``, or ``[..., cells, genes]`` where it differs between cells,
        or ``None``). Other heads of the likelihood are returned as ``px_<head>``.
        """
        inputs = {"background": dict(background), "target": dict(target)}
        z, s, library = (groups.join_required(inputs, key) for key in ("z", "s", "library"))
        codes = torch.cat([inputs[name]["batch_index"] for name in groups.GROUPS]).reshape(-1)
        n_background = background["z"].shape[-2]
        condition = groups.conditions(n_background, len(codes) - n_background, codes.device)
        batch = CellBatch(
            condition=condition,
            batch=codes,
            categorical=groups.join(inputs, "cat_covs"),
            continuous=groups.join(inputs, "cont_covs"),
        )
        heads = self.model.decode(z, s, batch)
        outputs: dict[str, Tensor | None] = {"px_scale": None, "px_rate": None, "px_dropout": None}
        sites = dict(self.model.expression(heads, library.exp()))
        px_r = heads.pop(INVERSE_DISPERSION, None)
        outputs |= {f"px_{name}": value for name, value in (dict(heads) | sites).items()}
        split = groups.split(outputs, n_background)
        return groups.with_dispersion(split, px_r, n_background)

    @one_thread()
    def loss(
        self,
        concat_tensors: dict[str, Group],
        inference_outputs: Groups,
        generative_outputs: Groups,
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Return the loss of what `inference` and `generative` returned for these cells.

        This is the objective's loss, with analytic KL divergences, of model and guide run with the
        given draws and distributions: encoders and decoder are not evaluated again.

        Parameters
        ----------
        concat_tensors
            ``concat_tensors[group]`` has the counts ``"X"`` and the batch codes ``"batch"``.
        inference_outputs, generative_outputs
            Outputs of `inference` and `generative`.
        kl_weight
            Weight of the KL divergences of z and s and of the penalties, relative to the
            likelihood and to the KL divergence of the library size.

        Returns
        -------
        See :class:`~pyro_contrastive.interop.module.populations.LossOutput`.
        """
        background, target = (concat_tensors[name] for name in groups.GROUPS)
        batch = groups.join_counts(background, target, "X", "batch")
        given = GivenOutputs(self.model, self.guide, inference_outputs, generative_outputs)
        objective = contrastive_elbo(TraceMeanField_ELBO, self.penalties, **given.particles)
        objective.kl_weight = kl_weight
        (traces,) = objective.traces(given.model, given.guide, batch)
        loss = objective.loss_of_traces(*traces)
        n_background = len(background["X"])
        terms = site_losses(*traces, analytic=True)
        names = part_names(traces[0])
        pairs = {name: groups.pair(term, n_background) for name, term in terms.items()}
        # Where a site is masked in background cells, the pair has the target cell's term only.
        none = torch.zeros_like(pairs["z"])
        extra = {p.name: objective.terms[p.name] for p in self.penalties}
        # As in scvi-tools, reported whether or not it is a penalty.
        extra["wasserstein_loss_sum"] = Wasserstein(1.0)(*traces, batch) * none.numel()
        return LossOutput(
            loss=loss,
            reconstruction_loss={names[site]: pairs[site] for site in observed_sites(traces[0])},
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
        log_prob: Tensor = counts_distribution(px_rate, px_r, px_dropout).log_prob(x)
        return -log_prob

    @staticmethod
    def latent_kl_divergence(
        variational_mean: Tensor,
        variational_var: Tensor,
        prior_mean: Tensor,
        prior_var: Tensor,
    ) -> Tensor:
        """Return KL(N(mean, var) || N(prior mean, prior var)), summed over latents."""
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
