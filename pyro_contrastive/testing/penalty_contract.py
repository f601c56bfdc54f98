"""The contract of a penalty."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_contrastive._tools.torch_tools import own_params, seeded
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.penalties import Penalty
from pyro_contrastive.testing import contracts
from pyro_contrastive.testing.contracts import fail
from pyro_contrastive.vae import ContrastiveVAE

N_RUNS = 64
N_STANDARD_ERRORS = 6.0
POPULATIONS = {
    "background cells only": [0] * 5,
    "target cells only": [1] * 5,
    "one cell of each population": [0, 1],
    "a single cell": [1],
}
Traces = tuple[Trace, Trace]


def check_penalty(
    penalty: Penalty,
    *,
    n_background_latent: int = 3,
    n_salient_latent: int = 2,
    n_conditions: int = 2,
    n_genes: int = 12,
    saving: bool = True,
    seed: int = 0,
    **vae_kwargs: Any,
) -> None:
    """Check everything that the library relies on in a penalty; takes about a second.

    A finite scalar, also where a population is missing or has one cell; gradients in the model or
    the guide, and in every parameter of the penalty; an average, not a sum, over vectorised
    particles; evaluation without side effects; double precision and other devices; both ELBOs;
    saving and loading. The penalty itself is not changed. Whether it penalises the right thing
    needs a test of your own: compare its value with one computed by hand.

    Parameters
    ----------
    penalty
        The penalty.
    n_background_latent, n_salient_latent, n_conditions, n_genes
        Sizes of the model and data that the penalty is made for.
    saving
        Require that it can be made again from its saved arguments.
    seed
        Seed of all random numbers.
    **vae_kwargs
        Further arguments of :class:`~pyro_contrastive.ContrastiveVAE`, such as a prior that the
        penalty reads.

    Raises
    ------
    ContractError
        At the first failure: what is wrong, what it leads to, and how to put it right.

    Examples
    --------
    >>> from pyro_contrastive import MMD
    >>> check_penalty(MMD(10.0))
    """
    if not isinstance(penalty, Penalty):
        fail(penalty, "it is not a Penalty.", "Subclass pyro_contrastive.Penalty.")
    if not hasattr(penalty, "weight"):
        fail(
            penalty,
            "it has no weight.",
            "Call super().__init__(weight, annealed=annealed) first in __init__.",
        )
    if not (isinstance(penalty.name, str) and penalty.name):
        fail(penalty, f"its name is {penalty.name!r}.", "Set `name` to a word for the history.")

    def make_vae(given: Penalty | None = None, **kwargs: Any) -> ContrastiveVAE:
        sizes: dict[str, Any] = {
            "n_background_latent": n_background_latent,
            "n_salient_latent": n_salient_latent,
            "n_hidden": 8,
        }
        parts = {
            k: contracts.copy_of(v) if isinstance(v, nn.Module) else v
            for k, v in vae_kwargs.items()
        }
        used = contracts.copy_of(penalty) if given is None else given
        return ContrastiveVAE(n_genes, penalties=[used], **(sizes | parts | kwargs))

    with seeded(seed), own_params():
        batch = contracts.make_cells(n_genes, n_conditions, int(vae_kwargs.get("n_batch", 1)))
        vae = make_vae()
        _check_value(vae, batch)
        _check_populations(vae, batch)
        _check_gradients(vae, batch)
        _check_pure(vae, batch)
        several = make_vae(elbo_kwargs={"num_particles": N_RUNS, "vectorize_particles": True})
        several.load_state_dict(vae.state_dict())
        _check_particles(vae, several, batch)
        contracts.check_moves(
            vae.penalties[0],
            lambda v, b: v.penalties[0](*_traces(v, b), b),
            lambda to: contracts.move(vae, batch, to),
        )
        contracts.check_losses(penalty, make_vae, batch, "penalties.0")
        if saving:
            again = make_vae(contracts.check_written_down(penalty))
            again.load_state_dict(vae.state_dict())
            before, after = (_eval_value(v, batch) for v in (vae, again))
            contracts.check_same_after_loading(penalty, before, after)


def _traces(vae: ContrastiveVAE, batch: CellBatch) -> Traces:
    return next(vae.objective.traces(vae.model, vae.guide, batch))


def _eval_value(vae: ContrastiveVAE, batch: CellBatch) -> Tensor:
    vae.eval()
    pyro.set_rng_seed(2)
    with torch.no_grad():
        value: Tensor = vae.penalties[0](*_traces(vae, batch), batch)
    return value


def _check_value(vae: ContrastiveVAE, batch: CellBatch) -> None:
    penalty = vae.penalties[0]
    traces = _traces(vae, batch)
    remedy = (
        "It is given both traces and the cells. Sites of the guide: "
        f"{list(traces[1].stochastic_nodes)}; further sites of the model: "
        f"{[n for n in traces[0].nodes if n in {'library', 'scale', 'rate', 'x'}]}; each has "
        '["value"] and, if drawn, ["fn"], with an axis of cells before that of latents or genes.'
    )
    with contracts.explained(penalty, "forward(model_trace, guide_trace, batch)", remedy):
        value: object = penalty(*traces, batch)
    if not isinstance(value, Tensor) or value.shape != ():
        what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        fail(
            penalty,
            f"it returned {what}, not a scalar tensor.",
            "Average over cells, and over particles, which may be to the left of them: .mean().",
        )
    if not value.is_floating_point() or not value.isfinite():
        fail(
            penalty,
            f"its value is {value}.",
            "Return a finite floating-point number; clamp arguments of log and sqrt, and divisors.",
        )


def _check_populations(vae: ContrastiveVAE, batch: CellBatch) -> None:
    penalty = vae.penalties[0]
    assert batch.x is not None
    for name, codes in POPULATIONS.items():
        few = CellBatch(condition=torch.tensor(codes), x=batch.x[: len(codes)])
        vae.eval()  # batch norm cannot average over one cell
        penalty.train()
        vae.zero_grad()
        traces = _traces(vae, few)
        remedy = "Return 0 (value.sum() * 0.0, say) where the penalty is not defined."
        with contracts.explained(penalty, f"a mini-batch of {name}", remedy):
            value = penalty(*traces, few)
            own = penalty.own_loss(*traces, few)
        total = value if own is None else value + own
        if total.requires_grad:
            total.backward()
        gradients = [p.grad for p in vae.parameters() if p.grad is not None]
        if not value.isfinite() or not all(g.isfinite().all() for g in gradients):
            fail(
                penalty,
                f"its value or gradient is not finite for a mini-batch of {name}; such "
                "mini-batches occur at the end of an epoch, and would end the training.",
                "Divide by counts clamped to at least 1, and select with torch.where before the "
                "division, not after.",
            )


def _check_gradients(vae: ContrastiveVAE, batch: CellBatch) -> None:
    penalty = vae.penalties[0].train()
    vae.zero_grad()
    traces = _traces(vae, batch)
    value = penalty(*traces, batch)
    if value.requires_grad:
        value.backward(retain_graph=True)
    others = [*vae.model.parameters(), *vae.guide.parameters()]
    if not any(p.grad is not None and p.grad.any() for p in others):
        fail(
            penalty,
            "its gradient reaches no parameter of the model or the guide: it would be recorded but "
            "change nothing.",
            'Compute it from the traces (guide_trace.nodes["z"]["value"], or ["fn"]) with torch, '
            "without .detach(), .item() or numpy. If it reads a prior, give check_penalty that "
            "prior.",
        )
    own = penalty.own_loss(*traces, batch)
    if own is not None:
        before = [None if p.grad is None else p.grad.clone() for p in others]
        torch.autograd.backward(own)
        for parameter, old in zip(others, before, strict=True):
            same = parameter.grad is None or (old is not None and torch.equal(parameter.grad, old))
            if not same:
                fail(
                    penalty,
                    "the gradient of own_loss reaches the model or the guide, where no weight "
                    "would apply to it.",
                    "Detach everything that own_loss takes from the traces.",
                )
    contracts.check_gradients(penalty, "in its value or its own_loss")


def _check_pure(vae: ContrastiveVAE, batch: CellBatch) -> None:
    vae.eval()
    penalty, traces = vae.penalties[0], _traces(vae, batch)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    with torch.no_grad():
        first, second = (penalty(*traces, batch) for _ in range(2))
    changed = [n for n, v in vae.state_dict().items() if not torch.equal(v, before[n])]
    if changed or not torch.allclose(first, second):
        fail(
            penalty,
            "evaluating it twice gives different numbers"
            + (f", and changes {changed}" if changed else "")
            + ": held-out losses could not be compared.",
            "In evaluation mode (not self.training) use no random numbers and update nothing; "
            "let the penalty's own parameters learn through own_loss.",
        )


def _check_particles(vae: ContrastiveVAE, several: ContrastiveVAE, batch: CellBatch) -> None:
    penalty = vae.penalties[0]
    vae.eval(), several.eval()
    with torch.no_grad():
        single = torch.stack([penalty(*_traces(vae, batch), batch) for _ in range(N_RUNS)])
        together = several.penalties[0](*_traces(several, batch), batch)
    if together.shape != ():
        fail(
            penalty,
            f"with vectorised particles it returned shape {list(together.shape)}, not a scalar.",
            "Latents are then [particles, cells, latents]: average over the particles too.",
        )
    error = float(single.std()) * (2.0 / N_RUNS) ** 0.5
    off = abs(float(together) - float(single.mean()))
    if off > N_STANDARD_ERRORS * error + 1e-3 * abs(float(single.mean())) + 1e-6:
        fail(
            penalty,
            f"with {N_RUNS} vectorised particles it is {float(together):.4g}, but the mean of "
            f"{N_RUNS} single ones is {float(single.mean()):.4g}.",
            "Latents are then [particles, cells, latents]: index axes from the right, and average "
            "over particles instead of adding them up.",
        )
