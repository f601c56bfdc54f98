"""Checks shared by the contracts of priors, likelihoods, guides and penalties."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NoReturn, TypeVar

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.components.component import Component
from pyro_contrastive.vae import ContrastiveVAE

N_CELLS = 8
ELBOS = (Trace_ELBO, TraceMeanField_ELBO)
PARTICLES: tuple[dict[str, Any], ...] = ({}, {"num_particles": 3, "vectorize_particles": True})
M = TypeVar("M", bound=nn.Module)
C = TypeVar("C", bound=Component)


class ContractError(AssertionError):
    """A component breaks what the library relies on; the message says how to put it right."""


def fail(component: object, what: str, remedy: str) -> NoReturn:
    """Raise the error of a broken contract.

    Parameters
    ----------
    component
        The object, or its class.
    what
        The fault and its consequence: one or two sentences.
    remedy
        How to fix it: one or two sentences.

    Raises
    ------
    ContractError
        Always.
    """
    cls = component if isinstance(component, type) else type(component)
    raise ContractError(f"{cls.__name__}: {what} {remedy}")


@contextmanager
def explained(component: object, what: str, remedy: str) -> Iterator[None]:
    """Turn any error raised in this context into that of a broken contract.

    Parameters
    ----------
    component
        As in :func:`fail`.
    what
        The action in the context; the message continues with "raised".
    remedy
        How to fix it.
    """
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        first_line = f"{error}".partition("\n")[0]
        message = f"{what} raised {type(error).__name__}: {first_line}. {remedy}"
        raise ContractError(f"{type(component).__name__}: {message}") from error


def copy_of(component: M) -> M:
    """Copy a component or a model, but not torch's constraints, which are compared by identity."""
    same = (constraints.real, constraints.positive)
    return copy.deepcopy(component, {id(constraint): constraint for constraint in same})


def make_cells(
    n_genes: int, n_conditions: int, n_batch: int, dtype: torch.dtype = torch.float32
) -> CellBatch:
    """Make a few cells of each condition and batch."""
    cells = torch.arange(N_CELLS)
    x = torch.poisson(3 * torch.rand(N_CELLS, n_genes)) + 1.0
    return CellBatch(
        condition=cells % n_conditions,
        batch=(cells // n_conditions) % max(n_batch, 1),
        x=x.to(dtype),
        library=x.sum(-1, keepdim=True).to(dtype),
    )


def as_double(batch: CellBatch) -> CellBatch:
    """Return the cells with their numbers in double precision."""
    given: dict[str, Any] = {"condition": batch.condition, "batch": batch.batch}
    for name in ("x", "library"):
        value = getattr(batch, name)
        given[name] = None if value is None else value.double()
    return CellBatch(**given)


def parameters_without_gradient(module: nn.Module) -> list[str]:
    """Return the names of the trainable parameters that a backward pass did not reach."""
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]


def check_gradients(component: Component, where: str) -> None:
    """Require a finite gradient in every parameter, after a backward pass."""
    missed = parameters_without_gradient(component)
    if missed:
        fail(
            component,
            f"no gradient reaches {missed} {where}, so training would not change them.",
            "Use every parameter in the value you return, without .detach(), .item(), "
            "torch.no_grad() or torch.tensor(...) in between. Or register it as a buffer.",
        )
    for name, parameter in component.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            fail(
                component,
                f"the gradient of {name!r} is not finite {where}.",
                "Look for 0/0, sqrt(0) or log(0): clamp their arguments, not their results.",
            )


def check_tensors_are_registered(component: Component) -> None:
    """Require that no tensor is in a plain attribute, which .to() and saving leave out."""
    for path, module in component.named_modules():
        if type(module).__module__.partition(".")[0] in {"torch", "pyro"}:
            continue  # not the user's; AutoRegressiveNN keeps a second list of its buffers
        for name, value in vars(module).items():
            if name in {"_parameters", "_buffers", "_modules", "_bound"}:
                continue
            if any(True for _ in _tensors_in(value)):
                full = f"{path}.{name}" if path else name
                fail(
                    component,
                    f"the attribute {full!r} holds a tensor that is neither a parameter nor a "
                    "buffer: it stays behind when the model moves to a GPU, and is not saved.",
                    f"Write self.register_buffer({name!r}, ...), or torch.nn.Parameter(...) if it "
                    "is to be learned, and build distributions in forward from these.",
                )


def _tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, torch.distributions.Distribution):
        yield from (v for v in vars(value).values() if isinstance(v, Tensor))
    elif isinstance(value, dict):
        for v in value.values():
            yield from _tensors_in(v)
    elif isinstance(value, (list, tuple, set)):
        for v in value:
            yield from _tensors_in(v)


def check_written_down(component: C) -> C:
    """Require that the component can be made again from its JSON; return the new one.

    Loading a model makes the library's own parts from their JSON. It asks the user for other parts,
    and says with which arguments they were made.
    """
    spec = component.spec()
    how = (
        "Keep every argument of __init__ as an attribute of the same name (self.alpha = alpha), "
        "or override `arguments` and `from_arguments`. With saving=False this is not checked: the "
        "model can then be saved, but without the arguments of this object."
    )
    if spec["arguments"] is None:
        fail(component, f"its arguments cannot be saved: {spec['reason']}.", how)
    with explained(component, f"making it again from its arguments {spec['arguments']}", how):
        return type(component).from_arguments(json.loads(json.dumps(spec["arguments"])))


def check_same_after_loading(component: Component, before: Tensor, after: Tensor) -> None:
    """Require that a component made again with the saved weights gives the same numbers."""
    if before.shape != after.shape or not torch.allclose(before, after, rtol=1e-4, atol=1e-6):
        fail(
            component,
            "made again from its saved arguments and weights it gives other numbers, so a loaded "
            "model would differ from the one that was saved.",
            "Keep learned values and random draws in parameters and buffers, and settings in "
            "arguments of __init__ whose attributes are not changed.",
        )


def check_losses(component: Component, make_vae: Any, batch: CellBatch, inside: str) -> None:
    """Run the model under both ELBOs, with one particle and with several at once.

    Parameters
    ----------
    component
        The object that messages name.
    make_vae
        Function of keyword arguments that makes a model with (a copy of) the component.
    batch
        Cells, with data in the likelihood's support.
    inside
        Path of the component's copy in the model, such as ``"model.likelihood"``.
    """
    for elbo in ELBOS:
        for particles in PARTICLES:
            where = f"under {elbo.__name__}{' with vectorised particles' if particles else ''}"
            vae = make_vae(elbo=elbo, elbo_kwargs=particles)
            before, values = copy.deepcopy(vae.state_dict()), list[Tensor]()
            remedy = (
                "Shapes are [..., cells, features]: index axes from the right, since there may be "
                "further axes on the left (particles)."
            )
            with explained(component, f"running the model {where}", remedy):
                for method in ("loss", "differentiable_loss"):
                    pyro.set_rng_seed(1)
                    vae.load_state_dict(before)  # a buffer may count the steps of training
                    vae.model.eval(), vae.guide.eval()
                    with torch.set_grad_enabled(method != "loss"):
                        value = getattr(vae.objective, method)(vae.model, vae.guide, batch)
                    values.append(torch.as_tensor(value))
                torch.autograd.backward(values[1])
            if not all(v.isfinite() for v in values):
                remedy = "Look for log(0), 0/0 or an overflow of exp."
                fail(component, f"the loss is not finite {where}.", remedy)
            if not torch.allclose(values[0], values[1].detach().to(values[0]), rtol=1e-4):
                fail(
                    component,
                    f"evaluating the loss and differentiating it give different numbers {where}: "
                    f"{float(values[0])} and {float(values[1].detach())}.",
                    "The result must not depend on whether gradients are on, or on earlier calls.",
                )
            check_gradients(vae.get_submodule(inside), f"in the loss {where}")


def check_moves(component: Component, compute: Any, moved: Any) -> None:
    """Require that a component follows the model to another precision and to another device.

    There may be no second device, so that torch's "meta" device stands in. Its tensors have shapes
    but no numbers, and like those of a GPU they cannot be mixed with tensors on the CPU. A
    component that has to read numbers cannot run there, which is not counted as a failure.

    Parameters
    ----------
    component
        The object that messages name.
    compute
        Function of a moved model and cells that returns a tensor.
    moved
        Function of a dtype or device that returns a moved copy of the model, and cells like it.
    """
    check_tensors_are_registered(component)
    remedy = (
        "Make new tensors from those you are given (torch.zeros_like(x), x.new_zeros(...)), and "
        "keep constants in buffers."
    )
    with explained(component, "running it in double precision", remedy):
        result = compute(*moved(torch.float64))
    if result.dtype != torch.float64:
        fail(component, f"in a model in double precision it computes in {result.dtype}.", remedy)
    try:
        with pyro.validation_enabled(False):
            result = compute(*moved("meta"))
    except (RuntimeError, NotImplementedError) as error:
        if "same device" in str(error) or "expected device" in str(error):
            what = f"it mixes devices once the model is moved ({str(error).splitlines()[0]})."
            raise ContractError(f"{type(component).__name__}: {what} {remedy}") from error
        return
    if result.device.type != "meta":
        fail(component, "its result stays on the CPU when the model is moved.", remedy)


def move(vae: ContrastiveVAE, batch: CellBatch, to: Any) -> tuple[ContrastiveVAE, CellBatch]:
    """Copy a model, and cells, to another dtype or device."""
    twin = copy_of(vae).eval().to(to)
    return twin, as_double(batch) if isinstance(to, torch.dtype) else batch.to(to)


def shape_of(shape: Iterable[int]) -> str:
    """Write a shape as the documentation does: ``[8, 2]``."""
    return str(list(shape))


Site = Literal["z", "s", "library"]
