"""The base class of priors, likelihoods, guides and penalties: modules with savable arguments."""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from abc import ABC
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Self

import numpy as np
from torch import nn

from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive.components.library_parts import PART_KINDS, library_parts

logger = logging.getLogger(__name__)
PACKAGE = "pyro_contrastive"
Spec = dict[str, Any]
"""A component as JSON: ``{"class": "module:Name", "arguments": {...}}``.

``arguments`` is ``None`` when they cannot be saved, and ``reason`` says why.
"""
LONGEST_CALL = 300
"""Longest call, in characters, that a message shows with its arguments."""


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

    Constructor arguments that are kept as attributes of the same name are saved with the model:
    ``self.alpha = alpha`` in ``__init__`` is enough. For an argument that is not kept, or is not
    JSON (a tensor, a function), override :meth:`arguments` and :meth:`from_arguments`. Loading a
    model makes the library's own parts again from their arguments. It does not make parts of your
    own, because no file may run code: pass the object to ``load``, whose error message says which
    arguments it was made with.
    """

    @property
    def is_changed_by_training(self) -> bool:
        """Whether training changes it, so that it belongs to one model: true with parameters."""
        return next(self.parameters(), None) is not None

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments that make an equal component (before training).

        Raises
        ------
        TypeError
            If one of them is not an attribute of the component.
        """
        constructor = type(self).__init__
        if constructor is nn.Module.__init__:  # which accepts any arguments and needs none
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
        # The library's parts have their public name, so that files survive a move of the module.
        is_public = getattr(import_module(PACKAGE), cls.__qualname__, None) is cls
        name = f"{PACKAGE if is_public else cls.__module__}:{cls.__qualname__}"
        try:
            arguments = json.loads(json.dumps(self.arguments(), default=as_json_value))
        except (TypeError, ValueError) as error:  # ValueError: circular
            return {"class": name, "arguments": None, "reason": str(error)}
        return {"class": name, "arguments": arguments}


def check_component(given: object, cls: type[Component], keyword: str) -> None:
    """Refuse anything but a component of the right kind, before it becomes part of a model.

    Parameters
    ----------
    given
        The object that the user passed.
    cls
        `Prior`, `Likelihood`, `ContrastiveGuide` or `Penalty`.
    keyword
        Name of the argument, for the error message.

    Raises
    ------
    TypeError
        If it is a class rather than an object of it, or something else, or was not initialised.
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


def is_library_part(spec: Spec) -> bool:
    """Tell whether a saved part is one of the library's own, by the name of its class.

    Files of earlier versions may name the module of the package that the class was in; only the
    name of the class counts, and nothing is imported for it.
    """
    module, _, name = spec["class"].partition(":")
    is_inside = module == PACKAGE or module.startswith(f"{PACKAGE}.")
    return is_inside and any(name in parts for parts in library_parts().values())


def class_name(spec: Spec) -> str:
    """Return the name of a part's class, without module or enclosing classes and functions."""
    name: str = spec["class"].rpartition(":")[2].rpartition(".")[2]
    return name if name.isidentifier() and name.isascii() else ascii(name)


def call_of(spec: Spec) -> str:
    """Return the call that makes a saved part, such as ``Wasserstein(weight=2.0)``."""
    given = spec["arguments"]
    if given is None:
        return f"{class_name(spec)}(...)"
    call = f"{class_name(spec)}({', '.join(f'{name}={value!a}' for name, value in given.items())})"
    can_be_shown = len(call) <= LONGEST_CALL and all(map(str.isidentifier, given))
    return call if can_be_shown else f"{class_name(spec)}(...)"


def argument_of(keyword: str, found: Spec | list[Spec]) -> str:
    """Return the argument that gives a model its saved parts, such as ``likelihood=Mine()``."""
    if isinstance(found, list):
        return f"{keyword}=[{', '.join(call_of(spec) for spec in found)}]"
    return f"{keyword}={call_of(found)}"


def report_own_parts(components: Mapping[str, Spec | list[Spec]]) -> None:
    """Report the parts that must be passed in again when the model is loaded.

    Parts of the user's own are logged (INFO); those whose arguments cannot be saved cause a
    warning.
    """
    own = []
    for keyword, found in components.items():
        specs = found if isinstance(found, list) else [found]
        if not all(map(is_library_part, specs)):
            own.append(argument_of(keyword, found))
        for spec in specs:
            if spec["arguments"] is None:
                warnings.warn(
                    f"{keyword}: load() will not be able to make {class_name(spec)} again, since "
                    f"{spec['reason']}. Its weights are saved; pass the object when loading, made "
                    "with the same arguments, which are not saved.",
                    UserWarning,
                    stacklevel=4,
                )
    if own:
        logger.info(
            "Parts of your own are not made from a file. Pass them when loading the model: "
            "ContrastiveVI.load(..., %s).",
            ", ".join(own),
        )


def refuse_missing_parts(components: Mapping[str, Spec | list[Spec]]) -> None:
    """Refuse parts that are not the library's own, or were saved without arguments.

    Parameters
    ----------
    components
        The parts that were not passed in, by keyword.

    Raises
    ------
    ValueError
        If there are any; the error shows the call that loads the model.
    """
    wanted: list[str] = []
    reasons: list[str] = []
    for keyword, found in components.items():
        for spec in found if isinstance(found, list) else [found]:
            name, argument = class_name(spec), argument_of(keyword, found)
            if not is_library_part(spec):
                where = ascii(spec["class"].rpartition(":")[0])
                why = f"{keyword}: {name} (from module {where}) is not a part of {PACKAGE}"
            elif spec["arguments"] is None:
                why = f"{keyword}: {name} was saved without its arguments"
            else:
                continue
            reasons.append(why if spec["arguments"] is not None else f"{why} ({spec['reason']})")
            wanted = [*wanted, argument] if argument not in wanted else wanted
    if reasons:
        msg = (
            f"{'; '.join(reasons)}. Loading a model makes only the library's own parts, so that no "
            "file can run code. Pass your own parts, made with the arguments they had: "
            f"ContrastiveVI.load(..., {', '.join(wanted)})."
        )
        raise ValueError(msg)


def component_from_spec(spec: Spec, keyword: str) -> Component:
    """Make the library's own part that a saved model names.

    The name in the file is looked up in :func:`library_parts` and nowhere else.

    Parameters
    ----------
    spec
        What :meth:`Component.spec` returned.
    keyword
        The argument by which the user can pass the object instead.

    Raises
    ------
    ValueError
        If it is a part of the user's own, which must be passed in.
    InvalidFileError
        If it is of another kind than the keyword takes, or cannot be made with these arguments.
    """
    refuse_missing_parts({keyword: spec})
    name = class_name(spec)
    kind, parts = next(found for found in library_parts().items() if name in found[1])
    wanted = PART_KINDS.get(keyword, "Prior")
    if kind != wanted:
        msg = (
            f"The saved model names {name} for {keyword}, which is a {kind}; a {wanted} is needed "
            "there. The file was changed after it was saved."
        )
        raise InvalidFileError(msg)
    try:
        return parts[name].from_arguments(spec["arguments"])
    except Exception as error:  # a constructor may raise anything if a file was changed
        msg = (
            f"The saved model's {name} could not be made again from its saved arguments ({error}). "
            f"Pass the object itself when loading: ContrastiveVI.load(..., {keyword}=...)."
        )
        raise InvalidFileError(msg) from error
