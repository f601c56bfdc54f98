"""What priors, likelihoods and penalties share: modules that can be written down."""

from __future__ import annotations

import inspect
import json
import warnings
from abc import ABC
from collections.abc import Mapping
from importlib import import_module
from operator import attrgetter
from typing import Any, Self

import numpy as np
from torch import nn

PACKAGE = "pyro_contrastive"
Spec = dict[str, Any]
"""A component as JSON: ``{"class": "module:Name", "arguments": {...}}``.

``arguments`` is ``None``, and ``reason`` says why, when they cannot be written down.
"""


def as_json_value(value: object) -> Any:
    """Turn a NumPy scalar into Python's: the ``default`` of :func:`json.dumps`.

    Raises
    ------
    TypeError
        If `value` is anything else.
    """
    if isinstance(value, np.generic):
        return value.item()
    msg = f"a {type(value).__name__} cannot be written as JSON"
    raise TypeError(msg)


class Component(nn.Module, ABC):
    """A swappable part of the model.

    A constructor argument kept as an attribute of the same name is saved with the model and given
    back when it is loaded; so write ``self.alpha = alpha`` in ``__init__`` and nothing else is
    needed. For an argument that is not kept, or is not JSON (a tensor, a function), override
    :meth:`arguments` and :meth:`from_arguments`; else the model can be saved, but the object has to
    be passed in again when it is loaded.
    """

    @property
    def is_changed_by_training(self) -> bool:
        """Whether training changes it, so that it belongs to one model: if it has parameters."""
        return next(self.parameters(), None) is not None

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments that make an equal component (before training).

        Raises
        ------
        TypeError
            If one of them is not an attribute of the component.
        """
        constructor = type(self).__init__
        if constructor is nn.Module.__init__:  # takes anything, wants nothing
            return {}
        _, *names = inspect.signature(constructor).parameters  # the first is the object itself
        for name in names:
            if not hasattr(self, name):
                msg = f"the argument {name!r} is not kept as an attribute of that name"
                raise TypeError(msg)
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """Make the component again from what :meth:`arguments` returned (after JSON)."""
        return cls(**arguments)

    def extra_repr(self) -> str:
        """Show the arguments in the printed form."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments().items())

    def spec(self) -> Spec:
        """Return class and arguments of the component, to be written as JSON."""
        cls = type(self)
        # Those of the library by the name users know, whatever file they are in.
        is_public = getattr(import_module(PACKAGE), cls.__qualname__, None) is cls
        name = f"{PACKAGE if is_public else cls.__module__}:{cls.__qualname__}"
        try:
            arguments = json.loads(json.dumps(self.arguments(), default=as_json_value))
        except (TypeError, ValueError) as error:  # ValueError: circular
            return {"class": name, "arguments": None, "reason": str(error)}
        return {"class": name, "arguments": arguments}


def check_component(given: object, cls: type[Component], keyword: str) -> None:
    """Refuse what is not a component of the wanted kind, before it is made part of a model.

    Parameters
    ----------
    given
        What the user passed.
    cls
        `Prior`, `Likelihood` or `Penalty`.
    keyword
        Name of the argument, for the error message.

    Raises
    ------
    TypeError
        If it is a class and no object of it, or something else, or was not initialised.
    """
    kind = cls.__name__
    if isinstance(given, type) and issubclass(given, Component):
        msg = (
            f"{keyword}: {given.__name__} is a class; give an object of it, {given.__name__}(...)."
        )
        raise TypeError(msg)
    if not isinstance(given, cls):
        what = repr(given) if isinstance(given, str) else f"a {type(given).__name__}"
        msg = (
            f"{keyword} must be an object of a pyro_contrastive.{kind}, or of a subclass of your "
            f"own; not {what}."
        )
        raise TypeError(msg)
    if "_parameters" not in vars(given):
        name = type(given).__name__
        msg = f"{keyword}: {name}.__init__ must call super().__init__() before anything else."
        raise TypeError(msg)


def warn_of_unwritten(components: Mapping[str, Spec | list[Spec]]) -> None:
    """Say which parts cannot be made again from what is written of them, and why."""
    for keyword, found in components.items():
        for spec in found if isinstance(found, list) else [found]:
            if spec["arguments"] is None:
                name = spec["class"].rpartition(":")[2].rpartition(".")[2]
                warnings.warn(
                    f"{keyword}: load() will not be able to make {name} again, since "
                    f"{spec['reason']}. Its weights are saved; pass the object when loading, or "
                    "override arguments() and from_arguments().",
                    UserWarning,
                    stacklevel=4,
                )


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
        if spec["arguments"] is None:
            raise TypeError(spec["reason"])
        cls = attrgetter(class_name)(import_module(module_name))
        if not (isinstance(cls, type) and issubclass(cls, Component)):
            raise TypeError(f"{cls} is not a prior, likelihood or penalty")
        return cls.from_arguments(spec["arguments"])
    except Exception as error:  # importing and making it runs the user's code
        made = f"{class_name.rpartition('.')[2]}(...)"
        msg = (
            f"The saved model uses {class_name} (from module {module_name}), which could not be "
            f"made again here ({error}). Pass the object itself when loading: load(..., "
            f"{keyword}={f'[{made}]' if keyword == 'penalties' else made}), with the arguments it "
            "was made with."
        )
        raise ValueError(msg) from error
