"""Check once, before training, what a user's own components return; errors name the component."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.components.component import PACKAGE, Component
from pyro_contrastive.components.parts import Part, parts_of
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.likelihoods import Likelihood
from pyro_contrastive.model import CELLS, without_expression
from pyro_contrastive.penalties import Penalty
from pyro_contrastive.sites import is_local
from pyro_contrastive.vae import ContrastiveVAE


@contextmanager
def explained(vae: ContrastiveVAE) -> Iterator[None]:
    """Add notes to an error: which own component raised it, and which function tests that."""
    try:
        yield
    except Exception as error:
        own = [part for part in parts_of(vae.model, vae.guide, vae.penalties) if _is_own(part[1])]
        for note in _notes(error, own):
            error.add_note(note)
        raise


def has_own_parts(vae: ContrastiveVAE) -> bool:
    """Tell whether a prior, likelihood, guide or penalty is not the library's."""
    return any(_is_own(part) for _, part in parts_of(vae.model, vae.guide, vae.penalties))


@contextmanager
def outputs_checked(vae: ContrastiveVAE, n_cells: int) -> Iterator[None]:
    """Check, while the context is open, what own priors, likelihoods and penalties return.

    Raises
    ------
    TypeError
        Inside the context, if a prior or likelihood does not return a Pyro distribution, or a
        penalty does not return a tensor.
    ValueError
        Inside the context, if a shape is wrong.
    """
    handles = []
    for keyword, part in parts_of(vae.model, vae.guide, vae.penalties):
        if _is_own(part) and keyword != "guide":  # which returns nothing: see `check_sites`
            check = partial(_wanted(vae, keyword, n_cells), _name((keyword, part)))
            handles.append(part.register_forward_hook(_hook(check)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_sites(vae: ContrastiveVAE, batch: CellBatch) -> None:
    """Check that the guide draws the latents of the model: these sites, no others, of this shape.

    Raises
    ------
    ValueError
        If it leaves a site out or adds one, draws one outside the plate of cells or in it where the
        model does not, or of another dimension; the error names the site.
    """
    found = _latent_sites(vae.guide, batch)
    # Draws from a wide prior may be out of any range, which says nothing about the guide.
    with pyro.validation_enabled(False), without_expression():
        wanted = _latent_sites(vae.model, batch)
    name = f"{type(vae.guide).__name__} (guide)"
    for site in (site for site in wanted if site not in found):
        msg = (
            f"{name} does not draw the site {site!r}, which the model has: the sites of the model "
            f"are {list(wanted)}, and those of the guide {list(found)}. Draw every latent with "
            f"pyro.sample({site!r}, ...)."
        )
        raise ValueError(msg)
    for site in (site for site in found if site not in wanted):
        msg = (
            f"{name} draws the site {site!r}, which the model does not have: the sites of the "
            f"model are {list(wanted)}. Rename it, or leave it out; an intermediate draw that has "
            'no counterpart in the model needs infer={"is_auxiliary": True}.'
        )
        raise ValueError(msg)
    for site, (is_in_plate, shape) in wanted.items():
        if found[site] != (is_in_plate, shape):
            where, inside = found[site][1], "" if is_in_plate else "not "
            msg = (
                f"{name} draws the site {site!r} with shape {list(where)}"
                f"{'' if found[site][0] else ' outside the plate of cells'}; the model has "
                f"{list(shape)} there, {inside}in the plate "
                f'pyro.plate("{CELLS}", len(batch), dim=-1), with one event dimension.'
            )
            raise ValueError(msg)


def _latent_sites(program: Any, batch: CellBatch) -> dict[str, tuple[bool, torch.Size]]:
    """Return the latents that a program draws: whether in the plate of cells, and their shapes."""
    nodes = poutine.trace(program).get_trace(batch).nodes
    return {
        name: (is_local(site), site["value"].shape)
        for name, site in nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not site_is_subsample(site)
        and not site["infer"].get("is_auxiliary")
    }


def warn_of_idle_penalties(vae: ContrastiveVAE, batch: CellBatch) -> None:
    """Warn of own penalties whose value has no gradient, so that they train nothing."""
    own = [penalty for penalty in vae.penalties if _is_own(penalty) and penalty.weight]
    if not own:
        return
    with torch.enable_grad():
        traces = next(vae.objective.traces(vae.model, vae.guide, batch))
        idle = [penalty for penalty in own if not penalty(*traces, batch).requires_grad]
    for penalty in idle:
        warnings.warn(
            f"{_name(('penalties', penalty))} has no gradient: it is added to the loss, but trains "
            "nothing. Compute it by torch operations on the values in the traces, without "
            "detach(), item(), numpy(), comparisons or rounding.",
            UserWarning,
            stacklevel=2,
        )


def refuse_loose_tensors(vae: ContrastiveVAE) -> None:
    """Refuse tensors of a component that require a gradient but are not parameters.

    Raises
    ------
    ValueError
        If there is one: it would be neither trained nor saved.
    """
    for keyword, part in parts_of(vae.model, vae.guide, vae.penalties):
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.requires_grad and value.is_leaf:
                msg = (
                    f"{_name((keyword, part))}: the tensor {name!r} requires a gradient but is not "
                    "a parameter, so train() would not fit it, and save() would not keep it. Make "
                    "it a torch.nn.Parameter."
                )
                raise ValueError(msg)


def _is_own(part: Component) -> bool:
    return not type(part).__module__.startswith(f"{PACKAGE}.")


def _name(part: Part) -> str:
    return f"{type(part[1]).__name__} ({part[0]})"


def _tester(part: Component) -> str:
    kinds = {Likelihood: "likelihood", Penalty: "penalty", ContrastiveGuide: "guide"}
    kind = next((name for cls, name in kinds.items() if isinstance(part, cls)), "prior")
    return f"pyro_contrastive.testing.check_{kind}"


def _notes(error: Exception, own: list[Part]) -> Iterator[str]:
    """Yield notes for an error: where it came from, and how to test that component alone."""
    frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    raisers = [part for part in own if any(part[1] is found for found in frames)]
    for part in raisers:
        yield f"Found before training, in {_name(part)}; {_tester(part[1])} tests it by itself."
        if isinstance(error, KeyError) and isinstance(part[1], Penalty):
            yield (
                "Sites of the traces: 'z', 's', 'library' and 'x'; the model's trace also has the "
                "deterministic 'scale' and 'rate' if uses_expression is True."
            )
    if own and not raisers:
        names = "; ".join(f"{_name(part)} (tested by {_tester(part[1])})" for part in own)
        yield f"Found before training. Your own components are: {names}."


Wanted = Callable[[str, Any], None]


def _wanted(vae: ContrastiveVAE, keyword: str, n_cells: int) -> Wanted:
    """Return the check of what a component given as `keyword` returns."""
    if keyword == "penalties":
        return _check_value
    sizes = {
        "likelihood": vae.n_input,
        "background_prior": vae.n_background_latent,
        "salient_prior": vae.n_salient_latent,
        "library_prior": 1,
    }
    check = partial(_check_distribution, size=sizes[keyword], n_cells=n_cells)
    return partial(check, may_be_of_all=keyword != "likelihood")


def _hook(check: Callable[[Any], None]) -> Callable[[nn.Module, Any, Any], None]:
    return lambda _module, _inputs, output: check(output)


def _check_distribution(
    name: str, output: Any, *, size: int, n_cells: int, may_be_of_all: bool
) -> None:
    if not isinstance(output, dist.Distribution):
        kind = f"{type(output).__module__}.{type(output).__name__}".removeprefix("builtins.")
        msg = (
            f"{name}: forward returned {kind}, not a distribution of pyro.distributions, such as "
            "dist.Normal(mean, scale).to_event(1)."
        )
        raise TypeError(msg)
    batch, event = list(output.batch_shape), list(output.event_shape)
    if event != [size]:
        hint = "call .to_event(1) on it" if not event else "check the sizes it is made with"
        msg = f"{name}: the distribution has event shape {event}, which must be [{size}]: {hint}."
        raise ValueError(msg)
    if not (batch[-1:] == [n_cells] or (may_be_of_all and batch in ([], [1]))):
        shapes = f"[{n_cells}], the cells" + (", or []" if may_be_of_all else "")
        msg = f"{name}: the distribution has batch shape {batch}, which must be {shapes}."
        raise ValueError(msg)


def _check_value(name: str, output: Any) -> None:
    if not isinstance(output, Tensor):
        msg = f"{name}: forward returned a {type(output).__name__}, not a torch tensor."
        raise TypeError(msg)
    if output.dim():
        msg = (
            f"{name}: forward returned shape {list(output.shape)}; it must return a single number, "
            "for instance the mean over cells."
        )
        raise ValueError(msg)
