"""Capture a recording as a CUDA graph, which launches all of its operations at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

CAPTURED_ON = {"cuda"}
"""Types of devices that support it."""
_N_FIRST = 3
"""Runs before the captured one, in which libraries allocate the memory they need."""


class Captured:
    """Replays a recording by launching its graph, on inputs of one set of shapes.

    A graph reads and writes the memory it was captured with. Inputs are copied into it. Gradients
    stay in it, and are valid until the next replay; all other results are copied out.

    Parameters
    ----------
    replay
        Function of the inputs that returns a dictionary of results; ``"gradients"`` among them are
        not copied. It is called several times here, and the caller restores what it changes.
    inputs
        Inputs of the shapes it will be replayed on.
    """

    def __init__(self, replay: Callable[..., dict[str, Any]], inputs: Sequence[Tensor]) -> None:
        self._recorded = replay  # keeps alive the tensors that the graph reads
        self._inputs = [tensor.clone() for tensor in inputs]
        self._found, self._replay = capture(lambda: replay(*self._inputs), inputs[0].device)

    def __call__(self, *inputs: Tensor) -> dict[str, Any]:
        """Replay it."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._replay()
        copied = {name: value for name, value in self._found.items() if name != "gradients"}
        return self._found | tree_map(torch.clone, copied)


def capture(
    function: Callable[[], dict[str, Any]], device: torch.device
) -> tuple[dict[str, Any], Callable[[], None]]:
    """Capture a function on a GPU; return its results, and a function that recomputes them.

    The tensors that the function reads must live as long as the latter is used.
    """
    with torch.cuda.device(device):
        here = torch.cuda.current_stream()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch does not say
        try:
            aside.wait_stream(here)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(aside):
                for _ in range(_N_FIRST):
                    function()
                # Without `stream`, torch would capture on the device that was used first.
                with torch.cuda.graph(graph, stream=aside):
                    found = function()
            here.wait_stream(aside)
        finally:  # after a failed capture torch stays in its stream
            torch.cuda.set_stream(here)
    return found, graph.replay
