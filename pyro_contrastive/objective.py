"""The loss hook: an ELBO averaged per population, with an annealed KL and penalty terms.

Weights are the objective's business, not the model's: the Pyro programs state plain densities, and
the objective runs them under a handler that scales their sites. So NUTS, importance sampling or a
bare ``pyro.infer.Trace_ELBO`` see the model as it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_contrastive._tools.pyro_names import unique_name
from pyro_contrastive._tools.torch_tools import tensors_for_items
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.model import without_expression
from pyro_contrastive.penalties import Penalty
from pyro_contrastive.sites import SalientOfTargets, WeightedSites, is_local, site_losses

Weighting = Literal["population", "proportional"]


def kl_weight_at(step: int, warmup_steps: int, start: float = 0.0, end: float = 1.0) -> float:
    """KL weight of a training step: linear from `start` to `end` over `warmup_steps` steps.

    Parameters
    ----------
    step
        Number of steps taken so far.
    warmup_steps
        Length of the warm-up; 0 for none.
    start, end
        Weight before the first step, and from the end of the warm-up on.
    """
    if step >= warmup_steps:
        return end
    return start + (end - start) * step / warmup_steps


def cell_weights(batch: CellBatch, weighting: Weighting) -> Tensor:
    """Weight of each cell's ELBO in the loss of a mini-batch, shape ``[cells]``.

    Parameters
    ----------
    batch
        The cells.
    weighting
        ``"population"``: the mean over background cells plus the mean over target cells, as in
        scvi-tools, whatever their numbers. ``"proportional"``: every cell counts the same. Both sum
        to 2 when both populations are present: losses are per background/target pair.
    """
    is_target = batch.is_target
    if weighting == "proportional":
        return torch.full(is_target.shape, 2.0 / len(batch), device=is_target.device)
    n_target = is_target.sum()
    per_target, per_background = 1.0 / n_target, 1.0 / (len(batch) - n_target)
    return torch.where(is_target, per_target, per_background)  # inf only where not selected


def _register(penalty: Penalty) -> None:
    """Tell Pyro of a penalty's parameters: SVI trains what is registered during its step."""
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
        # One plate, known beforehand: Pyro would find out by running model and guide once more.
        super().__init__(**({"max_plate_nesting": 1} | elbo_kwargs))
        if weighting not in {"population", "proportional"}:
            msg = f"weighting must be 'population' or 'proportional', not {weighting!r}."
            raise ValueError(msg)
        names = [penalty.name for penalty in penalties]
        if len(set(names)) < len(names):
            msg = f"Two penalties have the same name: {names}. Override `name` in one of them."
            raise ValueError(msg)
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
        self._record(model_trace, guide_trace, batch)
        for penalty in self.penalties:
            _register(penalty)
            value = penalty(model_trace, guide_trace, batch)
            self.terms[penalty.name] = value.detach()
            value = value * penalty.weight * (self.kl_weight if penalty.annealed else 1.0)
            loss = loss + value.detach() * self._particles_at_once
            own = penalty.own_loss(model_trace, guide_trace, batch) if penalty.training else None
            if own is not None:
                value = value + (own - own.detach())  # a gradient, and 0 for a value
            surrogate = surrogate + value * self._particles_at_once
        return loss, surrogate

    @property
    def _particles_at_once(self) -> int:
        """How many particles a trace holds: Pyro sums over them and divides by their number."""
        return self.num_particles if self.vectorize_particles else 1  # type: ignore[attr-defined]

    @torch.no_grad()
    def _record(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> None:
        """Keep the parts of the ELBO, per pair and without the KL weight, for the history."""
        weights = cell_weights(batch, self.weighting)
        self.terms = {}
        for name, term in site_losses(model_trace, guide_trace, analytic=self.analytic_kl).items():
            if is_local(model_trace.nodes[name]):
                total = (term * weights).sum(-1).mean()
            else:
                total = term.mean() * weights.sum() / (self.data_size or len(batch))
            self.terms["reconstruction_loss" if name == "x" else f"kl_{name}"] = total

    def __call__(self, model: nn.Module, guide: nn.Module) -> ELBOModule:
        """Make a torch module whose forward is the loss; it holds all that is trained."""
        module = super().__call__(model, guide)  # type: ignore[misc]
        module.penalties = nn.ModuleList(self.penalties)
        return module

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Evaluate the loss, penalties included; agrees with `differentiable_loss`."""
        return float(sum(loss for loss, _ in self._particles(model, guide, args, kwargs)))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Evaluate the loss as a tensor, to be differentiated; a GPU is not waited for."""
        values, surrogates = zip(*self._particles(model, guide, args, kwargs), strict=True)
        surrogate: Tensor = sum(surrogates)
        return sum(values) + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Evaluate the loss, and add its gradient to that of every parameter."""
        return float(super().loss_and_grads(model, guide, *args, **kwargs))  # type: ignore[misc]

    def _particles(
        self, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluate each particle's share of the loss, and of what has its gradient."""
        for traces in self._get_traces(model, guide, args, kwargs):  # type: ignore[attr-defined]
            loss, surrogate = self._differentiable_loss_particle(*traces)
            yield loss / self.num_particles, surrogate / self.num_particles  # type: ignore[attr-defined]


class ContrastiveELBO(_ContrastiveTerms, Trace_ELBO):
    """:class:`pyro.infer.Trace_ELBO` per population, with annealed KL and penalties.

    The loss of a mini-batch, per background/target pair, is

    ::

        mean over background cells + mean over target cells of
            -log p(x | z, s, l) + w [log q(z) - log p(z)] + w [log q(s) - log p(s)]   # s: targets
            + [log q(l) - log p(l)]                                       # if the library is latent
        + w * sum of penalty weight * penalty

    (and in training mode the gradient of a penalty's :meth:`~Penalty.own_loss`, if it has one) with
    w the KL weight. Use it as any Pyro ELBO: ``SVI(vae.model, vae.guide, optim,
    vae.objective)``, or ``vae.objective(vae.model, vae.guide)`` as a torch module.

    Parameters
    ----------
    penalties
        Terms added to the loss.
    weighting
        See :func:`cell_weights`.
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
        Weight of the annealed KL terms; set it between steps. Default 1.
    terms
        Parts of the loss of the last mini-batch, detached, per pair: ``reconstruction_loss``,
        ``kl_z``, ``kl_s``, ``kl_library`` (without the KL weight) and each penalty's value.
    """

    analytic_kl = False


class ContrastiveMeanFieldELBO(_ContrastiveTerms, TraceMeanField_ELBO):
    """The same objective with analytic KL divergences (:class:`pyro.infer.TraceMeanField_ELBO`).

    Equal to scvi-tools' contrastiveVI loss for the same draws. See :class:`ContrastiveELBO` for
    parameters and attributes.
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
