"""Read the file in which scvi-tools saves a model, without running anything from the file.

scvi-tools saves with ``torch.save``: a zip file with a pickle and one record of raw numbers per
tensor. A pickle is a program, which makes its objects by calling whatever functions it names. Here
no function named by the file is called: this module builds tensors from their records, and an
object of NumPy or pandas becomes a :class:`StandIn`, which keeps the pickle's description of it and
does nothing. (NumPy's own unpickling of arrays is not used either, because it trusts its input.)
Every other name in the file is refused. ``torch.load(weights_only=True)`` cannot be used: it
refuses these files, because their training history consists of pandas objects.
"""

from __future__ import annotations

import math
import pickle
import re
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from pickletools import genops
from typing import Any, BinaryIO, ClassVar, Self
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor

from pyro_contrastive._tools.invalid_file import InvalidFileError

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
_KEPT_PACKAGES = ("numpy", "pandas", "torch.distributions", "pyro.distributions")
"""Packages whose objects are accepted, as stand-ins. The last two are for constraints in Pyro's
parameter store, which scvi-tools saves as a whole, with parameters of all models of a session."""
_KEPT_NAMES = {"builtins.slice", "torch._utils._rebuild_parameter"}
_NUMPY_CODE = re.compile(r"[biufU]\d+")


class RefusedObjectError(InvalidFileError):
    """The file contains an object that scvi-tools' ContrastiveVI does not save."""


class StandIn:
    """The description of an object that was not made: class, arguments and state."""

    qualified_name: ClassVar[str]
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Self:
        """Keep the arguments; also when the pickle calls the class as a function."""
        made = super().__new__(cls)
        made.arguments = arguments
        made.state = None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Mapping(dict[Any, Any]):
    """Stands for ``OrderedDict``; drops the metadata that torch attaches to a state dict."""

    def __setstate__(self, state: Any) -> None:
        pass


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    if (
        math.prod(size) > storage.numel()
    ):  # a stride of 0 would make a huge tensor from a small record
        msg = "a tensor is larger than its record"
        raise pickle.UnpicklingError(msg)
    return storage.as_strided(size, stride, offset).clone()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        msg = f"bytes encoded as {encoding!r}"
        raise pickle.UnpicklingError(msg)
    return text.encode("latin1")


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "collections.OrderedDict": _Mapping,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": dict,
    "builtins.bytes": lambda: b"",  # how protocol 2 writes empty bytes ...
    "_codecs.encode": _encode,  # ... and how it writes others
}
"""Functions that a file may call, by the names under which it calls them."""


class _Unpickler(pickle.Unpickler):
    """Makes containers, numbers, strings and tensors, and nothing else."""

    def __init__(self, path: Path, archive: ZipFile, folder: str) -> None:
        pickled = _read_record(archive, f"{folder}data.pkl")
        _check_labels(pickled)
        super().__init__(BytesIO(pickled))
        self._path, self._archive = path, archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        """Return the function that the file may call by this name, without importing anything."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        qualified = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if qualified in _CALLS:
            # A new function (below, a new class) each time: a file can set attributes of it.
            def call(*arguments: Any) -> Any:
                return _CALLS[qualified](*arguments)

            return call
        kept = any(module == p or module.startswith(f"{p}.") for p in _KEPT_PACKAGES)
        if kept or qualified in _KEPT_NAMES:
            return type("StandIn", (StandIn,), {"qualified_name": qualified})
        msg = (
            f"{self._path} names {qualified}, which is not part of what scvi-tools' "
            "ContrastiveVI saves; nothing was run. If you trust the file, load it with scvi-tools "
            "(scvi.external.ContrastiveVI.load) and pass the model instead of the path."
        )
        raise RefusedObjectError(msg)

    def persistent_load(self, pid: Any) -> Tensor:
        """Read the numbers of a tensor: ``("storage", dtype, record, device, length)``."""
        kind, dtype, record, _, length = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            msg = f"{kind!r} is not a tensor's record"
            raise pickle.UnpicklingError(msg)
        numbers = _read_record(self._archive, f"{self._folder}data/{record}")
        if len(numbers) != length * dtype.itemsize:
            msg = f"record {record} has {len(numbers)} bytes, not {length * dtype.itemsize}"
            raise pickle.UnpicklingError(msg)
        if not numbers:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(numbers), dtype=dtype)


def _read_record(archive: ZipFile, name: str) -> bytes:
    if archive.getinfo(name).compress_type != ZIP_STORED:  # torch never compresses; a zip bomb does
        msg = f"record {name} is compressed"
        raise pickle.UnpicklingError(msg)
    return archive.read(name)


def _check_labels(pickled: bytes) -> None:
    """Refuse labels larger than the pickle: Python would allocate memory for that many objects."""
    for opcode, argument, _ in genops(pickled):
        if opcode.name in {"PUT", "BINPUT", "LONG_BINPUT"} and int(argument or 0) > len(pickled):
            msg = f"object {argument} in a pickle of {len(pickled)} bytes"
            raise pickle.UnpicklingError(msg)


def read_archive(path: Path) -> Any:
    """Read a file written by ``model.save`` of scvi-tools.

    Parameters
    ----------
    path
        The file, ``model.pt``.

    Returns
    -------
    What was saved: containers, numbers, strings, tensors (on the CPU), and stand-ins for objects of
    NumPy and pandas; see :func:`plain`.

    Raises
    ------
    RefusedObjectError
        If the file names anything else; nothing from it was run.
    InvalidFileError
        If the file is damaged, or was not written by ``torch.save``.
    """
    with path.open("rb") as file:  # the system's own errors, such as a file that may not be read
        return _read(path, file)


def _read(path: Path, file: BinaryIO) -> Any:
    try:
        with ZipFile(file) as archive:
            folders = [n[: -len("data.pkl")] for n in archive.namelist() if n.endswith("/data.pkl")]
            if len(folders) != 1:
                msg = "it has no pickle"
                raise pickle.UnpicklingError(msg)
            order = f"{folders[0]}byteorder"
            if order in archive.namelist() and archive.read(order) != sys.byteorder.encode():
                msg = "it was written on a machine with another byte order"
                raise pickle.UnpicklingError(msg)
            return _Unpickler(path, archive, folders[0]).load()
    except RefusedObjectError:
        raise
    except BadZipFile as error:
        msg = f"{path} is damaged, or was not written by torch.save ({error})."
        raise InvalidFileError(msg) from error
    except Exception as error:  # a damaged pickle can fail in any way
        msg = f"{path} is damaged, or not a model of scvi-tools ({type(error).__name__}: {error})."
        raise InvalidFileError(msg) from error


def plain(value: Any) -> Any:
    """Convert NumPy arrays and scalars, or their stand-ins, to lists and numbers.

    Parameters
    ----------
    value
        Numbers, strings, arrays, and lists, tuples and dictionaries of them.

    Raises
    ------
    TypeError
        If it contains anything else.
    """
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value)
    if isinstance(value, StandIn):
        return _plain_numpy(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    msg = f"a {type(value).__name__} is not a plain value"
    raise TypeError(msg)


def _plain_numpy(value: StandIn) -> Any:
    if value.qualified_name.endswith("multiarray._reconstruct") and value.state is not None:
        _, _, dtype, _, data = value.state
        return _numbers(dtype, data)
    if value.qualified_name.endswith("multiarray.scalar"):
        return _numbers(*value.arguments)[0]
    msg = f"a {value.qualified_name} is not a plain value"
    raise TypeError(msg)


def _numbers(dtype: StandIn, data: Any) -> list[Any]:
    """Read the entries of a pickled array, given its dtype, such as ``i8``, and its data."""
    code = dtype.arguments[0]
    if code == "O8":
        return [plain(v) for v in data] if isinstance(data, list) else [plain(data)]
    order = dtype.state[1] if dtype.state else "|"
    if not _NUMPY_CODE.fullmatch(code) or order not in {"<", ">", "|"}:
        msg = f"an array of type {code} is not supported"
        raise TypeError(msg)
    return list(np.frombuffer(data, np.dtype(order + code)).tolist())
