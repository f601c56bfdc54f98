"""What is remembered of each call of ``train``, so that it can be repeated, also from a file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pyro_contrastive._tools.invalid_file import InvalidFileError

_KEYS = {"arguments", "random_state", "threads", "device", "not_saved"}


@dataclass(frozen=True)
class TrainCall:
    """A call of ``train``.

    Parameters
    ----------
    arguments
        Its arguments by name.
    threads
        Number of threads of torch, on which the last digits of a result depend.
    device
        Type of the device that was trained on.
    random_state
        State of torch's random numbers on the CPU before the call, if it had no seed.
    not_saved
        Names of arguments that a file could not hold, such as functions.
    """

    arguments: dict[str, Any]
    threads: int
    device: str
    random_state: Tensor | None = None
    not_saved: tuple[str, ...] = ()

    @classmethod
    def now(cls, arguments: Mapping[str, Any], device: str) -> Self:
        """Note a call that is about to start."""
        state = torch.get_rng_state() if arguments.get("seed") is None else None
        return cls(dict(arguments), torch.get_num_threads(), device, state)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON; arguments that are not JSON are only named."""
        saved, lost = {}, list(self.not_saved)
        for name, value in self.arguments.items():
            try:
                saved[name] = json.loads(json.dumps(value, default=_as_json))
            except (TypeError, ValueError):  # ValueError: circular
                lost.append(name)
        state = self.random_state
        return {
            "arguments": saved,
            "threads": self.threads,
            "device": self.device,
            "random_state": None if state is None else _text_of(state),
            "not_saved": lost,
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what :meth:`to_json` returned.

        Raises
        ------
        InvalidFileError
            If it is something else.
        """
        if not isinstance(value, dict) or set(value) != _KEYS:
            raise InvalidFileError(f"'training' is not a list of tables of {', '.join(_KEYS)}")
        kinds = {"arguments": dict, "threads": int, "device": str, "not_saved": list}
        for name, kind in kinds.items():
            if type(value[name]) is not kind:
                raise InvalidFileError(f"'training': {name!r} is not a {kind.__name__}")
        state, lost = value["random_state"], tuple(map(str, value["not_saved"]))
        tensor = None if state is None else _state_of(state)
        return cls(value["arguments"], value["threads"], value["device"], tensor, lost)


def _as_json(value: object) -> Any:
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    raise TypeError(type(value).__name__)


def _text_of(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _state_of(text: object) -> Tensor:
    try:
        state = np.frombuffer(base64.b64decode(str(text), validate=True), np.uint8)
    except ValueError:
        state = np.empty(0, np.uint8)
    if len(state) != len(torch.get_rng_state()):
        raise InvalidFileError("'training': 'random_state' is not a state of torch's generator")
    return torch.from_numpy(state.copy())
