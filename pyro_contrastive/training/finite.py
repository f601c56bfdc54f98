"""Check that the loss is finite, and find where it stopped being so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating, seeded
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.sites import is_local
from pyro_contrastive.training.part_checks import (
    check_sites,
    explained,
    has_own_parts,
    outputs_checked,
    refuse_loose_tensors,
    warn_of_idle_penalties,
)
from pyro_contrastive.vae import ContrastiveVAE

Names = Callable[[], list[str]]
N_TRIES = 10
"""Number of draws in which :func:`explain_non_finite` searches for the site."""

N_SHOWN = 5
"""Number of cells that a message names."""


class NonFiniteLossError(RuntimeError):
    """The loss, or its gradient, became NaN or infinite."""


@contextmanager
def no_nan_warnings() -> Iterator[None]:
    """Silence Pyro's "Encountered NaN" where an error that names the site follows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered [+-]?(NaN|inf)")
        yield


def check_programs(vae: ContrastiveVAE, batch: CellBatch, cells: Names | None = None) -> None:
    """Run model and guide once with Pyro's checks on, before any training.

    `cells` returns the names of those in `batch`, for messages.

    This checks what a user's own prior, likelihood or penalty returns, what the guide draws,
    shapes, supports and the ranges of parameters, so that training steps can skip these checks.

    Raises
    ------
    TypeError
        If a prior or the likelihood does not return a distribution, or a penalty does not return a
        tensor.
    ValueError
        If what they return has the wrong shape; if the guide does not draw the latents of the
        model; from Pyro, if parameters or values of a distribution are out of range; or if model or
        guide use ``pyro.param``, or a component keeps a tensor that is not a parameter, because
        such values are neither trained nor saved.
    NonFiniteLossError
        If the initial loss is NaN or infinite.
    """
    refuse_loose_tensors(vae)
    with evaluating(vae), seeded(0), no_nan_warnings():
        with explained(vae), outputs_checked(vae, len(batch)), pyro.validation_enabled(True):
            check_sites(vae, batch)
            try:
                loss = vae.objective.loss(vae.model, vae.guide, batch)
            except ValueError as error:  # of torch, about a parameter or a value
                if has_own_parts(vae) or not str(error).startswith("Expected "):
                    raise
                raise _overflow(vae, batch) from error
        if not torch.isfinite(torch.as_tensor(loss)):
            when = "before the first step"
            raise explain_non_finite(vae, batch, when, vae.objective.terms, cells)
        _refuse_loose_parameters(vae, batch)
        warn_of_idle_penalties(vae, batch)


def _overflow(vae: ContrastiveVAE, batch: CellBatch) -> NonFiniteLossError:
    """Return an error about data that are too large for networks that have not been trained."""
    largest = 0.0 if batch.x is None else float(batch.x.abs().max())
    name = type(vae.model.likelihood).__name__
    return NonFiniteLossError(
        "The model is not finite before the first step: the data have values up to "
        f"{largest:,.4g}, which are too large for the networks of a model with {name}. "
        "Normalise them (scanpy.pp.normalize_total, scanpy.pp.log1p); or, if they are counts, "
        "choose a likelihood of counts."
    )


def _refuse_loose_parameters(vae: ContrastiveVAE, batch: CellBatch) -> None:
    stored = dict(pyro.get_param_store().named_parameters())
    own = {id(parameter) for parameter in vae.parameters()}
    for trace in next(vae.objective.traces(vae.model, vae.guide, batch)):
        for name in trace.param_nodes:
            if id(stored[name]) not in own:
                msg = (
                    f"pyro.param({name!r}) does not belong to a module: train() would not fit it, "
                    "and save() would not keep it. Make it a torch.nn.Parameter of your prior, "
                    "likelihood or penalty."
                )
                raise ValueError(msg)


def explain_non_finite(
    vae: ContrastiveVAE,
    batch: CellBatch,
    when: str,
    terms: Mapping[str, Tensor],
    cells: Names | None = None,
) -> NonFiniteLossError:
    """Return an error, to be raised, that names the first site that is not finite.

    Parameters
    ----------
    vae
        The model whose loss was not finite.
    batch
        The cells for which it was not.
    when
        In which epoch or step, for the message.
    terms
        The parts of that loss: :attr:`ContrastiveELBO.terms`.
    cells
        Returns the names of the cells. Default: their positions in `batch`.
    """
    bad_terms = [name for name, value in terms.items() if not torch.isfinite(value).all()]
    with pyro.validation_enabled(False), torch.no_grad():
        found = None
        for _ in range(N_TRIES):  # new noise each time: it may not happen in every draw
            traces = next(vae.objective.traces(vae.model, vae.guide, batch))
            names = [f"number {i} of the mini-batch" for i in range(len(batch))]
            names = names if cells is None else cells()
            found = _first_bad_site("guide", traces[1], names)
            found = found or _first_bad_site("model", traces[0], names)
            if found:
                break
    if not found and bad_terms:
        found = f"the term {bad_terms[0]!r} of the loss is"
    where = found or "the sum of the terms, though each of them is finite, is"
    return NonFiniteLossError(
        f"The loss is not finite {when}: {where} not finite. The weights are those before that "
        "step (with early stopping, the best ones; if the loss had exploded, those before it did). "
        "Lower the learning rate (plan_kwargs={'lr': ...}), or check the prior, likelihood, guide "
        "or penalty you changed."
    )


def explain_gradient(vae: ContrastiveVAE, when: str) -> NonFiniteLossError:
    """Return an error, to be raised, that names a parameter whose gradient is not finite."""
    names = [
        name
        for name, parameter in vae.named_parameters()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]
    which = f"that of {names[0]!r} and {len(names) - 1} more parameters" if names else "once"
    return NonFiniteLossError(
        f"The gradient is not finite {when}, though the loss is: {which}. The weights are those "
        "before that step. Look for 0/0, sqrt(0) or log(0) in the prior, likelihood or penalty you "
        "changed."
    )


def _first_bad_site(program: str, trace: Any, cells: Sequence[str]) -> str | None:
    for name, site in trace.nodes.items():
        if site["type"] == "param" and not torch.isfinite(site["value"]).all():
            return f"parameter {name!r} of the {program} is"
        if site["type"] != "sample":
            continue
        for what, value in (("value", site["value"]), ("log-density", site["log_prob"])):
            if not torch.isfinite(value).all():
                where = _bad_cells(value, cells, is_local=is_local(site))
                return f"site {name!r} of the {program} (its {what}{where}) is"
    return None


def _bad_cells(value: Tensor, cells: Sequence[str], *, is_local: bool) -> str:
    """Name the cells for which a value is not finite, if it has one for each."""
    if not is_local or not value.dim() or len(value) != len(cells):
        return ""
    bad = (~torch.isfinite(value)).reshape(len(value), -1).any(1).nonzero().flatten().tolist()
    if len(bad) == len(cells):
        return " in all cells of the mini-batch"
    shown = ", ".join(cells[i] for i in bad[:N_SHOWN])
    more = f" and {len(bad) - N_SHOWN} more" if len(bad) > N_SHOWN else ""
    return f" in {len(bad)} of {len(cells)} cells, {shown}{more}"
