"""The objective: an ELBO averaged per population, with annealed KL divergences and penalties.

Weights belong to the objective, not to the model: the Pyro programs state plain densities, and the
objective runs them under a handler that scales their sites. So NUTS, importance sampling or a bare
``pyro.infer.Trace_ELBO`` see the unweighted model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive._tools.pyro_names import unique_name
from pyro_contrastive._tools.torch_tools import tensors_for_items
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.model import without_expression
from pyro_contrastive.penalties import Penalty
from pyro_contrastive.sites import (
    KL,
    RECONSTRUCTION,
    SalientOfTargets,
    WeightedSites,
    Weighting,
    cell_weights,
    is_local,
    part_names,
    site_losses,
)


def _register(penalty: Penalty) -> None:
    """Register a penalty's parameters with Pyro: SVI trains those that it sees during its step."""
    for name, parameter in penalty.named_parameters():
        if parameter.requires_grad:
            pyro.param(f"{unique_name(penalty)}.{name}", parameter)


class _ContrastiveTerms:
    """Mixin over one of Pyro's trace ELBOs; see :class:`ContrastiveELBO`."""

    analytic_kl: ClassVar[bool]

    def __init__(
        self,
        penalties: Sequence[Penalty] = (),
        *,
        weighting: Weighting = "population",
        annealed: Sequence[str] = ("z", "s"),
        data_size: int | None = None,
        **elbo_kwargs: Any,
    ) -> None:
        # There is one plate; otherwise Pyro would run model and guide once more to find that out.
        check_arguments(elbo_kwargs)
        super().__init__(**({"max_plate_nesting": 1} | elbo_kwargs))
        if weighting not in {"population", "proportional"}:
            msg = f"weighting must be 'population' or 'proportional', not {weighting!r}."
            raise ValueError(msg)
        _check_names([penalty.name for penalty in penalties])
        self.penalties = penalties
        self.weighting = weighting
        self.annealed = tuple(annealed)
        self.data_size = data_size
        self.kl_weight: float | Tensor = 1.0
        self.terms: dict[str, Tensor] = {}

    def weights(self, batch: CellBatch) -> WeightedSites:
        """Return the handler that scales the sites of model and guide for this mini-batch."""
        weights = cell_weights(batch, self.weighting)
        global_weight = weights.sum() / (self.data_size or len(batch))
        return WeightedSites(weights, global_weight, self.kl_weight, self.annealed)

    def traces(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Iterator[tuple[Trace, Trace]]:
        """Run guide and model as the loss does, and yield the traces of model and of guide.

        One pair for each particle, or a single pair for all of them with ``vectorize_particles``.
        Log-densities are computed, and scaled as in the loss.

        Parameters
        ----------
        model, guide
            The programs.
        *args, **kwargs
            Their arguments: the cells first.
        """
        yield from self._get_traces(model, guide, args, kwargs)  # type: ignore[attr-defined]

    def parts(
        self,
        model_trace: Trace,
        guide_trace: Trace,
        *,
        sizes: tuple[int, int] | None = None,
        analytic: bool | None = None,
    ) -> dict[str, Tensor]:
        """Return the parts of the negative ELBO, per background/target pair; they add up to it.

        The KL weight and the penalties are left out: a penalty's value is what calling it with the
        traces and the cells returns.

        Parameters
        ----------
        model_trace, guide_trace
            A pair of :meth:`traces`.
        sizes
            Numbers of background and of target cells in the whole of which these cells are a
            part: the parts of all mini-batches of the whole then add up to its parts. Default:
            these cells are the whole.
        analytic
            Use closed-form KL divergences where there are any; default: as in the loss.

        Returns
        -------
        Scalars by name: ``reconstruction_loss`` for the observed data, and ``kl_<site>`` for every
        latent site. If the model observes several sites, ``reconstruction_loss_<site>`` for each.
        """
        batch = model_trace.nodes["_INPUT"]["args"][0]
        weights = cell_weights(batch, self.weighting, sizes)
        n_cells = self.data_size or (sum(sizes) if sizes else len(batch))
        analytic = self.analytic_kl if analytic is None else analytic
        names = part_names(model_trace)
        found = {}
        for site, loss in site_losses(model_trace, guide_trace, analytic=analytic).items():
            if is_local(model_trace.nodes[site]):
                # [..., cells], averaged over vectorised particles
                total = (loss * weights).sum(-1).mean()
            else:  # counts once in the data set; these cells have their share of it
                total = loss.mean() * weights.sum() / n_cells
            found[names[site]] = total
        return found

    def loss_of_traces(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        """Evaluate what a pair of :meth:`traces` adds to the loss, to be differentiated.

        Penalties are included, and :attr:`terms` are set.
        """
        loss, surrogate = self._differentiable_loss_particle(model_trace, guide_trace)
        loss, surrogate = loss / self.num_particles, surrogate / self.num_particles  # type: ignore[attr-defined]
        # The value of `loss` with the gradient of `surrogate`.
        return loss + (surrogate - surrogate.detach())

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        needed = any(penalty.uses_expression for penalty in self.penalties)
        with (
            nullcontext() if needed else without_expression(),
            self.weights(args[0]),
            SalientOfTargets(args[0].is_target),
        ):
            traces: tuple[Trace, Trace] = super()._get_trace(model, guide, args, kwargs)  # type: ignore[misc]
        return traces

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[Tensor, Tensor]:
        with tensors_for_items():
            loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)  # type: ignore[misc]
        batch = model_trace.nodes["_INPUT"]["args"][0]
        with torch.no_grad():
            self.terms = self.parts(model_trace, guide_trace)
        for penalty in self.penalties:
            _register(penalty)
            value = penalty(model_trace, guide_trace, batch)
            self.terms[penalty.name] = value.detach()
            value = value * penalty.weight * (self.kl_weight if penalty.annealed else 1.0)
            loss = loss + value.detach() * self._particles_at_once
            own = penalty.own_loss(model_trace, guide_trace, batch) if penalty.training else None
            if own is not None:
                value = value + (own - own.detach())  # adds the gradient, and 0 to the value
            surrogate = surrogate + value * self._particles_at_once
        return loss, surrogate

    @property
    def _particles_at_once(self) -> int:
        """Number of particles in a trace: Pyro sums over them and divides by their number."""
        return self.num_particles if self.vectorize_particles else 1  # type: ignore[attr-defined]

    def __call__(self, model: nn.Module, guide: nn.Module) -> ELBOModule:
        """Make a torch module whose forward is the loss; it holds all that is trained."""
        module = super().__call__(model, guide)  # type: ignore[misc]
        module.penalties = nn.ModuleList(self.penalties)
        return module

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Evaluate the loss, penalties included; agrees with `differentiable_loss`."""
        traces = self.traces(model, guide, *args, **kwargs)
        return float(sum(self.loss_of_traces(*pair).detach() for pair in traces))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Evaluate the loss as a tensor, to be differentiated; does not wait for a GPU."""
        traces = self.traces(model, guide, *args, **kwargs)
        total: Tensor = sum(self.loss_of_traces(*pair) for pair in traces)  # type: ignore[assignment]  # there is a pair
        return total

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Evaluate the loss, and add its gradient to that of every parameter."""
        return float(super().loss_and_grads(model, guide, *args, **kwargs))  # type: ignore[misc]


def _check_names(names: Sequence[str]) -> None:
    """Refuse names of penalties that have another meaning in the history, or are used twice."""
    if len(set(names)) < len(names):
        msg = f"Two penalties have the same name: {names}. Override `name` in one of them."
        raise ValueError(msg)
    for name in names:
        if name == "loss" or name.startswith(("elbo", KL, RECONSTRUCTION)):
            msg = (
                f"A penalty cannot be called {name!r}: in the history that is a part of the ELBO, "
                "or their sum. Override `name`."
            )
            raise ValueError(msg)


class ContrastiveELBO(_ContrastiveTerms, Trace_ELBO):
    """:class:`pyro.infer.Trace_ELBO` per population, with annealed KL and penalties.

    The loss of a mini-batch, per background/target pair, is

    ::

        mean over background cells + mean over target cells of
            -log p(x | z, s, l) + w [log q(z) - log p(z)] + w [log q(s) - log p(s)]   # s: targets
            + [log q(l) - log p(l)]                                       # if the library is latent
        + w * sum of penalty weight * penalty                         # w = 1 if it is not annealed

    with w the KL weight; in training mode also the gradient of a penalty's
    :meth:`~Penalty.own_loss`, if it has one. Use it as any Pyro ELBO: ``SVI(vae.model, vae.guide,
    optim, vae.objective)``, or ``vae.objective(vae.model, vae.guide)`` as a torch module.

    Parameters
    ----------
    penalties
        Terms added to the loss.
    weighting
        See :func:`~pyro_contrastive.sites.cell_weights`.
    annealed
        Sites whose KL is multiplied by `kl_weight`.
    data_size
        Number of cells in the whole data set, by which global sites (parameters with a prior) are
        weighted; ``None``: the mini-batch is the data set.
    **elbo_kwargs
        ``num_particles``, ``vectorize_particles`` and Pyro's other ELBO arguments.

    Attributes
    ----------
    kl_weight
        Weight of the annealed KL divergences and penalties, default 1; set it between steps.
    data_size
        The argument; set it when the data set is known.
    terms
        Parts of the loss of the last mini-batch, detached, per pair: what :meth:`parts` returns
        (``reconstruction_loss``, ``kl_z``, ``kl_s``, ``kl_library``, without the KL weight) and
        each penalty's value. Every evaluation of the loss replaces them.

    Examples
    --------
    The parts of the loss, with their gradients::

        for model_trace, guide_trace in vae.objective.traces(vae.model, vae.guide, batch):
            parts = vae.objective.parts(model_trace, guide_trace)
            parts["kl_s"].backward()
    """

    analytic_kl = False


class ContrastiveMeanFieldELBO(_ContrastiveTerms, TraceMeanField_ELBO):
    """The same objective with analytic KL divergences (:class:`pyro.infer.TraceMeanField_ELBO`).

    Equal to scvi-tools' contrastiveVI loss for the same draws. In a guide whose latents depend on
    each other, the KL divergence of a site is that given those drawn before it; their sum has the
    right mean, because the priors of the latents do not depend on each other. See
    :class:`ContrastiveELBO` for parameters and attributes.
    """

    analytic_kl = True


def contrastive_elbo(
    elbo: type[Trace_ELBO], penalties: Sequence[Penalty] = (), **kwargs: Any
) -> ContrastiveELBO | ContrastiveMeanFieldELBO:
    """Make the contrastive objective over one of Pyro's ELBO classes.

    Parameters
    ----------
    elbo
        :class:`pyro.infer.Trace_ELBO` or :class:`pyro.infer.TraceMeanField_ELBO`.
    penalties, **kwargs
        See :class:`ContrastiveELBO`.

    Raises
    ------
    ValueError
        For any other class.
    """
    made: dict[type, type[ContrastiveELBO] | type[ContrastiveMeanFieldELBO]] = {
        Trace_ELBO: ContrastiveELBO,
        TraceMeanField_ELBO: ContrastiveMeanFieldELBO,
    }
    if elbo not in made:
        msg = (
            f"elbo must be the class pyro.infer.Trace_ELBO or TraceMeanField_ELBO, not {elbo!r}. "
            "For another objective assign `vae.objective` yourself."
        )
        raise ValueError(msg)
    return made[elbo](penalties, **kwargs)
