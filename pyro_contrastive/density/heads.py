"""The decoder's heads, each evaluated on first access."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn

SCALE = "scale"
"""Name of the head on the simplex over genes: normalised expression, rho."""
ROOM = 2.0**40
"""Smallest scale by the smallest normal float: x / scale must not overflow in gradients."""
Layer = tuple[Tensor, Tensor]
"""Weight, ``[genes, n_hidden]``, and bias, ``[genes]``."""


def smallest_scale(dtype: torch.dtype) -> float:
    """Return the constant that is added to the softmax over genes.

    If the softmax underflowed to 0, a single count of that gene would be infinitely unlikely, and
    just above 0 its gradient would be infinite. The constant is too small to change other scales.
    It is added and not a lower bound, so that the gradient stays that of the softmax.
    """
    return torch.finfo(dtype).tiny * ROOM


_half: ContextVar[bool] = ContextVar("half", default=False)


@contextmanager
def bfloat16_products(on: bool) -> Iterator[None]:
    """Multiply the matrices of the decoder's heads in bfloat16 within this context, if `on`.

    Factors and products are rounded to 8 bits and the sums within a product are of single
    precision. Weights, softmax, densities and the optimiser's step stay in single precision.

    A context variable, like torch's own autocast, because precision is chosen for a training run
    and not for a model, and Pyro calls the model with the mini-batch only. It is read in one place,
    where :class:`Heads` are made; from there on it is an argument.
    """
    token = _half.set(on)
    try:
        yield
    finally:
        _half.reset(token)


def products_are_half() -> bool:
    """Tell whether :func:`bfloat16_products` is on."""
    return _half.get()


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, half: bool) -> Tensor:
    """Apply a linear layer; if `half`, its product (but not the bias) is computed in bfloat16."""
    if not half:
        return F.linear(hidden, weight, bias)
    product = F.linear(hidden.bfloat16(), weight.bfloat16()).to(hidden.dtype)
    return product if bias is None else product + bias


def simplex(logits: Tensor) -> Tensor:
    """Return normalised expression: the softmax over genes plus :func:`smallest_scale`."""
    floor = smallest_scale(logits.dtype)
    if logits.requires_grad:
        return logits.softmax(dim=-1) + floor
    return logits.softmax(dim=-1).add_(floor)  # saves an array, which may hold many draws


def _is_plain(layer: object) -> TypeGuard[nn.Linear]:
    """Tell whether a layer does nothing but multiply and add: no subclass, and no hooks."""
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


class Heads(MutableMapping[str, Tensor]):
    """Outputs of linear layers by name, ``[..., cells, genes]``; ``"scale"`` through a softmax.

    A head costs as much as the rest of the decoder, so that each is evaluated only on first access:
    normalised expression does not cost the other heads, and a fused log-density evaluates none of
    them. Otherwise this is a dictionary, whose entries can be set and deleted.

    Parameters
    ----------
    hidden
        The decoder's last hidden layer, ``[..., cells, n_hidden]``.
    layers
        A layer per head.
    """

    def __init__(self, hidden: Tensor, layers: nn.ModuleDict) -> None:
        self.hidden = hidden
        self._layers = dict(layers.items())
        self._values: dict[str, Tensor] = {}
        # The settings in force when the decoder runs, not when a head is accessed later.
        self._needs_grad = torch.is_grad_enabled()
        self.half = products_are_half()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._values:
            if name not in self._layers:
                msg = f"{name!r} is not among the heads of the likelihood: {[*self]}"
                raise KeyError(msg)
            with torch.set_grad_enabled(self._needs_grad):
                value = self._output(self._layers[name])
                if name == SCALE:
                    value = simplex(value)
            self._values[name] = value
        return self._values[name]

    def _output(self, layer: nn.Module) -> Tensor:
        if _is_plain(layer):
            return linear(self.hidden, layer.weight, layer.bias, self.half)
        output: Tensor = layer(self.hidden)
        return output

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._values[name] = value

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._values.pop(name, None)
        self._layers.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._layers, *self._values]))

    def __len__(self) -> int:
        return len(self._layers.keys() | self._values.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._layers or name in self._values

    def __or__(self, others: Mapping[str, Tensor]) -> Heads:
        """Return a copy in which `others` are set."""
        joined = copy(self)
        joined._layers, joined._values = dict(self._layers), self._values | dict(others)
        return joined

    def obstacle(self, names: Iterable[str]) -> str | None:
        """Say why a caller cannot evaluate these heads itself, from :meth:`layers`.

        ``None`` if it can: all are plain linear layers that have not been evaluated yet.
        """
        for name in names:
            layer = self._layers.get(name)
            if name in self._values:
                return f"the head {name!r} has been evaluated already, or set"
            if not _is_plain(layer) or layer.bias is None:
                return f"the layer of the head {name!r} is not a plain torch.nn.Linear with a bias"
        return None

    def layers(self, names: Iterable[str]) -> list[Layer]:
        """Return weight and bias of the layers of heads to which there is no :meth:`obstacle`."""
        plain = (cast(nn.Linear, self._layers[name]) for name in names)
        return [(layer.weight, layer.bias) for layer in plain]
