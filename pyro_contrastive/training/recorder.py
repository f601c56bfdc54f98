"""Record the torch operations of a step, so that it can be replayed without running Python code.

Why steps are recorded: Python, Pyro and autograd take a nearly constant time in every step,
whatever the number of genes. Replaying the torch operations of a step avoids it.
Processor time of a step of 128 + 128 cells in ms, one thread, turn by turn in one process:

======================  =====  ========  ==================
model                   plain  replayed  replayed / plain
======================  =====  ========  ==================
default, 20 genes       15.4   11.3      .73
default, 500 genes      13.7   12.6      .83
default, 2,000 genes    27.5   24.8      .89
default, 5,000 genes    58.6   57.0      .94
SepVAE, 2,000 genes     35.2   30.8      .88
separated, 2,000 genes  39.8   37.2      .92
======================  =====  ========  ==================

(The last column is the median over turns of the ratio, which varies less than the times.) On CPUs
alone that would hardly justify this code. It is kept for GPUs, where arithmetic should take little
of a step and this constant time nearly all (not yet measured; with 20 genes, on a CPU, scvi-tools'
step takes 15.8 ms, as much as the plain one). A recording can be captured as a CUDA graph, which
launches all operations at once.

torch's own tools do not replace it (tried with torch 2.13). ``torch.compile`` fails: as one graph,
at the context variables that effect handlers set; in pieces, after 56 s and about 80 pieces, at the
compiled density, a custom operator. ``make_fx`` traces the default step, and what it returns is the
same list of operations. But whatever Python does with tensors (``.numpy()``, ``.tolist()``, a size
that depends on values, a counter) silently becomes a constant in it, and priors, likelihoods and
penalties are users' code. The guards against that, which ``make_fx`` would need too, are most of
this code.
"""

from __future__ import annotations

import inspect
import operator
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

_aten = torch.ops.aten
_DETACH, _LIFT = _aten.detach.default, _aten.lift_fresh.default
_TO_NUMBER = _aten._local_scalar_dense.default
_BY_INDEX = {_aten.index, _aten.index_put, _aten.index_put_}
_MASKS = {torch.bool, torch.uint8}
_SIZES_VARY = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
_ESCAPES = {
    Tensor.numpy,
    Tensor.tolist,
    Tensor.data_ptr,
    Tensor.__array__,
    Tensor.__repr__,
    Tensor.__dlpack__,
    Tensor.data.__set__,  # type: ignore[attr-defined]  # a descriptor
}
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]  # a descriptor
_PLAIN = (
    *(bool, int, float, complex, str, type(None)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
_OTHERS_CODE = tuple(str(Path(inspect.getfile(package)).parent) for package in (torch, pyro))


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not say
    """Records what torch does, gradients included, as a function of some tensors.

    Every operation passes through here, below Python, Pyro and automatic differentiation, so that a
    recording is a list of operations. Tensors that are neither inputs nor made inside, such as
    parameters, are read and written anew in every replay.

    Parameters
    ----------
    inputs
        Tensors that each replay replaces by others.

    Attributes
    ----------
    refusal
        Why the operations cannot be recorded, or ``None``. Reasons: a tensor was converted to
        something outside torch, which Python may have done anything with; or the values of a tensor
        determined a size.
    devices
        Types of the devices whose tensors a replay reads or makes; known after :meth:`replay_of`.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.refusal: str | None = None
        self.devices: set[str] = set()
        if len({id(tensor) for tensor in inputs}) < len(inputs):
            self.refusal = "a mini-batch has one tensor in two places"
        self._graph = fx.Graph()
        # Weak keys: as long as a gradient is referenced here, autograd would copy it.
        self._nodes: Any = WeakTensorKeyDictionary()
        self._others: list[Tensor] = []
        self._written: set[int] = set()
        self._other_nodes = self._graph.placeholder("others")
        self._input_storages = {_storage(tensor) for tensor in inputs}
        for i, tensor in enumerate(inputs):
            self._write(tensor, self._graph.placeholder(f"input_{i}"))
        self._escapes = _Escapes(self)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what torch does inside."""
        with self._escapes, self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and record it."""
        kwargs = kwargs or {}
        if self.refusal is None:
            self.refusal = _why_not(func, args, kwargs)
        if self.refusal is None and func is _LIFT:  # a Python number became a tensor
            self._others.append(
                args[0].clone()
            )  # cloned again in each replay, which may write to it
            constant = self._graph.call_function(_aten.clone.default, (self._last_other(),))
            result = func(*args, **kwargs)
            self._write(result, constant)
            return result
        self._note_writing(func, args, kwargs)
        with torch._C.DisableTorchFunction():  # our own operators may use NumPy
            result = func(*args, **kwargs)
        if self.refusal is not None:
            return result
        if func is _DETACH:  # has no effect without differentiation
            self._write(result, self._read(args[0]))
        else:
            given, named = tree_map(self._read, args), tree_map(self._read, kwargs)
            self._write(result, self._graph.call_function(func, given, named))
        return result

    @property
    def written(self) -> list[Tensor]:
        """Tensors made outside that were written to inside."""
        return [tensor for tensor in self._others if _storage(tensor) in self._written]

    def replay_of(self, results: Any) -> Callable[..., Any]:
        """Return a function that replays the recording on tensors like the inputs.

        Parameters
        ----------
        results
            What the function returns: tensors that were made inside, in lists or dictionaries.
        """
        self._graph.output(tree_map(self._read, results))
        _drop_unused(self._graph)
        self.devices = {n.meta["device"] for n in self._graph.nodes if "device" in n.meta}
        replayed, others = fx.GraphModule({}, self._graph).forward, self._others
        return lambda *inputs: replayed(others, *inputs)

    def _read(self, value: Any) -> Any:
        """Return the node that made a tensor; other values are returned unchanged."""
        if not isinstance(value, Tensor):
            return value
        if value not in self._nodes:
            self._others.append(value)
            self._write(value, self._last_other())
        return self._nodes[value]

    def _last_other(self) -> fx.Node:
        place = (self._other_nodes, len(self._others) - 1)
        return self._graph.call_function(operator.getitem, place)

    def _write(self, result: Any, node: fx.Node) -> None:
        """Note which node made a tensor, or several."""
        if isinstance(result, Tensor):
            self._nodes[result] = node
            node.meta["device"] = result.device.type
        elif isinstance(result, (tuple, list)):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._write(part, self._graph.call_function(operator.getitem, (node, i)))

    def _note_writing(self, operation: Any, args: Any, kwargs: Any) -> None:
        """Note the memory that an operation writes to."""
        if self.refusal is not None or not operation._schema.is_mutable:
            return
        for i, argument in enumerate(operation._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            tensors = [t for t in tree_flatten(value)[0] if isinstance(t, Tensor)]
            for tensor in tensors:
                self._read(tensor)  # it may be from outside
            self._written |= {_storage(tensor) for tensor in tensors}
        if self._written & self._input_storages:
            self.refusal = f"a mini-batch is written to {_place()}"


class _Escapes(TorchFunctionMode):
    """Notices when a tensor is converted to something outside torch."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function."""
        recorder = self.recorder
        if func in _ESCAPES and recorder.refusal is None:
            name = "data = ..." if func.__name__ == "__set__" else func.__name__
            recorder.refusal = f"a tensor leaves torch (.{name}) {_place()}"
        result = func(*args, **(kwargs or {}))
        if func == _DATA and recorder.refusal is None:  # the same tensor, without an operation
            recorder._write(result, recorder._read(args[0]))
        return result


def _storage(tensor: Tensor) -> int:
    """Identify the memory of a tensor, shared by its views; unique as long as one of them lives."""
    return tensor.untyped_storage()._cdata


def _why_not(operation: Any, args: Any, kwargs: Any) -> str | None:
    if operation is _TO_NUMBER:
        return f"a tensor becomes a number (.item(), float(), bool(), `if`) {_place()}"
    if operation.overloadpacket in _BY_INDEX:  # their sizes vary only if the index is a mask
        if not any(i is not None and i.dtype in _MASKS for i in args[1]):
            return None
        return f"a mask is an index {_place()} (use torch.where, whose size does not vary)"
    if _SIZES_VARY.intersection(operation.tags):
        return f"the size of what {operation.name()} returns depends on values {_place()}"
    for value in tree_flatten((args, kwargs))[0]:
        if not isinstance(value, (Tensor, *_PLAIN)):
            return f"{operation.name()} takes a {type(value).__name__} {_place()}"
    return None


def _place() -> str:
    """Return the line that is running: the innermost one outside torch, Pyro and this file."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename != __file__ and not frame.filename.startswith(_OTHERS_CODE):
            return f"in {frame.filename}, line {frame.lineno}"
    return "somewhere"  # pragma: no cover - there is always a caller


def _drop_unused(graph: fx.Graph) -> None:
    """Remove operations without effect; those that write, draw or check something are kept."""
    for node in reversed(graph.nodes):
        if node.op != "call_function" or node.users:
            continue
        schema = getattr(node.target, "_schema", None)
        tags = getattr(node.target, "tags", ())
        if schema is None or not (
            schema.is_mutable or not schema.returns or torch.Tag.nondeterministic_seeded in tags
        ):
            graph.erase_node(node)
