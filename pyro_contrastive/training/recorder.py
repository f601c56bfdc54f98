"""What torch did in a step, recorded, so that it can be done again without Python's part in it."""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

_DETACH = torch.ops.aten.detach.default
_TO_NUMBER = torch.ops.aten._local_scalar_dense.default
_BY_INDEX = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}
_MASKS = {torch.bool, torch.uint8}
_SIZES_VARY = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not say
    """Writes down all that torch does inside, gradients included, as a function of some tensors.

    Every operation comes by here, below Python, Pyro and automatic differentiation: what they ask
    of torch is a list of operations. Tensors that are neither inputs nor made inside, such as
    parameters, are read and written whenever the recording is played.

    Parameters
    ----------
    inputs
        The tensors in whose place each playing has others.

    Attributes
    ----------
    refusal
        Why what happened inside cannot be recorded, or ``None``: a tensor was made a number, which
        Python may have done anything with, or the values in a tensor determined a size.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.refusal: str | None = None
        self._graph = fx.Graph()
        # Tensors are not kept: of a gradient that is, torch would make a copy.
        self._nodes: Any = WeakTensorKeyDictionary()
        self._others: list[Tensor] = []
        self._other_nodes = self._graph.placeholder("others")
        for i, tensor in enumerate(inputs):
            self._write(tensor, self._graph.placeholder(f"input_{i}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it, and write it down."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.refusal is None:
            self.refusal = _why_not(func, args)
        if self.refusal is not None:
            return result
        if func is _DETACH:  # means nothing where there is no differentiation
            self._write(result, self._read(args[0]))
        else:
            given, named = tree_map(self._read, args), tree_map(self._read, kwargs)
            self._write(result, self._graph.call_function(func, given, named))
        return result

    def playing(self, results: Any) -> Callable[..., Any]:
        """Return a function of tensors like the inputs that does the same again.

        Parameters
        ----------
        results
            What it returns: tensors that were made inside, in lists or dictionaries.
        """
        self._graph.output(tree_map(self._read, results))
        _drop_unused(self._graph)
        played, others = fx.GraphModule({}, self._graph).forward, self._others
        return lambda *inputs: played(others, *inputs)

    def _read(self, value: Any) -> Any:
        """Return where a tensor comes from; anything else is what it is."""
        if not isinstance(value, Tensor):
            return value
        if value not in self._nodes:
            place = (self._other_nodes, len(self._others))
            self._others.append(value)
            self._write(value, self._graph.call_function(operator.getitem, place))
        return self._nodes[value]

    def _write(self, result: Any, node: fx.Node) -> None:
        """Note where tensors come from."""
        if isinstance(result, Tensor):
            self._nodes[result] = node
        elif isinstance(result, (tuple, list)):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._write(part, self._graph.call_function(operator.getitem, (node, i)))


def _why_not(operation: Any, args: Any) -> str | None:
    if operation is _TO_NUMBER:
        return f"a tensor is made a number (.item(), float(), bool(), `if`) {_place()}"
    if operation.overloadpacket in _BY_INDEX:  # whose sizes vary only if the index is a mask
        if not any(i is not None and i.dtype in _MASKS for i in args[1]):
            return None
        return f"a mask is an index {_place()} (torch.where has no sizes that vary)"
    if _SIZES_VARY.intersection(operation.tags):
        return f"the size of what {operation.name()} returns depends on values {_place()}"
    return None


def _place() -> str:
    """Say which line is at work: the innermost one that is neither torch's, Pyro's nor this."""
    for frame in reversed(traceback.extract_stack()):
        package = Path(frame.filename).parts
        if not {"torch", "pyro"}.intersection(package) and frame.filename != __file__:
            return f"in {frame.filename}, line {frame.lineno}"
    return "somewhere"  # pragma: no cover - there is always a caller


def _drop_unused(graph: fx.Graph) -> None:
    """Leave out operations without a use; what is written to a tensor, or drawn, has one."""
    for node in reversed(graph.nodes):
        if node.op != "call_function" or node.users:
            continue
        schema = getattr(node.target, "_schema", None)
        tags = getattr(node.target, "tags", ())
        if (
            schema is None or not schema.is_mutable
        ) and torch.Tag.nondeterministic_seeded not in tags:
            graph.erase_node(node)
