"""What priors, likelihoods and penalties share: modules that can be written down."""

from __future__ import annotations

import inspect
from abc import ABC
from importlib import import_module
from typing import Any, Self

from torch import nn

Spec = dict[str, Any]
"""A component as JSON: ``{"class": "module:Name", "arguments": {...}}``."""


class Component(nn.Module, ABC):
    """A swappable part of the model.

    A constructor argument kept as an attribute of the same name is saved with the model and given
    back when it is loaded; so write ``self.alpha = alpha`` in ``__init__`` and nothing else is
    needed. An argument that is not JSON (a tensor, a function) has to be written down by
    overriding :meth:`arguments`, or the object passed in again at loading time.
    """

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments that make an equal component (before training)."""
        names = inspect.signature(type(self).__init__).parameters
        return {n: getattr(self, n) for n in names if n != "self" and hasattr(self, n)}

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """Make the component again from what :meth:`arguments` returned (after JSON)."""
        return cls(**arguments)

    def spec(self) -> Spec:
        """Return class and arguments of the component, to be written as JSON."""
        cls = type(self)
        return {"class": f"{cls.__module__}:{cls.__qualname__}", "arguments": self.arguments()}


def component_from_spec(spec: Spec, keyword: str) -> Component:
    """Make the component a saved model names.

    Parameters
    ----------
    spec
        What :meth:`Component.spec` returned.
    keyword
        Under which keyword the user may pass the object instead; only for the error message.

    Raises
    ------
    ValueError
        If the class cannot be imported or made again: it must then be passed in.
    """
    module_name, _, class_name = spec["class"].partition(":")
    try:
        cls = getattr(import_module(module_name), class_name)
        if not issubclass(cls, Component):
            raise TypeError(f"{cls} is not a prior, likelihood or penalty")
        return cls.from_arguments(spec["arguments"])
    except (ImportError, AttributeError, TypeError) as error:
        msg = (
            f"The saved model uses {class_name} (from module {module_name}), which could not be "
            f"made again here ({error}). Pass the object itself when loading: "
            f"load(..., {keyword}={class_name}(...)), with the arguments it was made with."
        )
        raise ValueError(msg) from error
