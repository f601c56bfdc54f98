"""Names for Pyro that are unique in the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from pyro.nn import PyroModule
from torch.nn import Module

_instances = count()
_unregistered: ContextVar[bool] = ContextVar("unregistered", default=False)


@contextmanager
def unregistered() -> Iterator[None]:
    """Use submodules inside without registering their parameters with Pyro.

    Registering visits all parameters each time a submodule is used, and only ``SVI`` needs it.
    Modules of Pyro are registered as usual, because their parameters may be sample sites.
    """
    token = _unregistered.set(True)
    try:
        yield
    finally:
        _unregistered.reset(token)


class NamedPyroModule(PyroModule):
    """A :class:`pyro.nn.PyroModule` with a process-wide unique Pyro name.

    Pyro keeps parameters in one global store under their attribute path. Two models of one class
    would share those paths, and the second one trained by ``SVI`` would silently keep training the
    first one's tensors. A unique root name per instance (copies and unpickled ones included)
    prevents it, without touching any global Pyro setting.
    """

    def __init__(self) -> None:
        super().__init__(self._fresh_name())

    @classmethod
    def _fresh_name(cls) -> str:
        return f"{cls.__name__}_{next(_instances)}"

    def __getattr__(self, name: str) -> Any:
        """Look up a submodule; inside :func:`unregistered` without registering it with Pyro."""
        if _unregistered.get():
            module = self.__dict__.get("_modules", {}).get(name)
            if module is not None and not isinstance(module, PyroModule):
                return module
        return super().__getattr__(name)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled instance under a name of its own."""
        super().__setstate__(state)
        self._pyro_name = self._fresh_name()


_names: WeakKeyDictionary[Module, str] = WeakKeyDictionary()


def unique_name(module: Module) -> str:
    """Return a name for a plain torch module that is unique in the process.

    It stays the same for one module; a copy gets another.
    """
    if module not in _names:
        _names[module] = f"{type(module).__name__}_{next(_instances)}"
    return _names[module]
